// The checks of kv_append_ that CPU and CUDA share.
#include "kv_append.h"

namespace lazyllm {
namespace {

KvAppendSide side_of(const Tensor& store, const Tensor& rows) {
  return {
      .from = rows.const_data_ptr(),
      .to = store.mutable_data_ptr(),
      .from_token_stride = rows.stride(0),
      .from_head_stride = rows.stride(1),
      .to_slot_stride = store.stride(0),
      .to_head_stride = store.stride(1),
  };
}

}  // namespace

KvAppendParams check_kv_append(const Checks& check, const Tensor& key_store,
                               const Tensor& value_store, const Tensor& slots, const Tensor& key,
                               const Tensor& value) {
  check.floats("key_store", key_store, 3);
  const ScalarType dtype = key_store.scalar_type();
  check.floats("value_store", value_store, 3, dtype);
  check.floats("key", key, 3, dtype);
  check.floats("value", value, 3, dtype);
  for (int64_t dim = 0; dim < 3; ++dim) {
    check.size("value_store", value_store, dim, key_store.size(dim));
  }
  check.index("slots", slots, key.size(0));
  for (int64_t dim = 1; dim < 3; ++dim) check.size("key", key, dim, key_store.size(dim));
  for (int64_t dim = 0; dim < 3; ++dim) check.size("value", value, dim, key.size(dim));
  return {
      .key = side_of(key_store, key),
      .value = side_of(value_store, value),
      .slots = slots.const_data_ptr<int64_t>(),
      .tokens = key.size(0),
      .num_slots = key_store.size(0),
      .num_kv_heads = key_store.size(1),
      .head_dim = key_store.size(2),
      .element_bytes = static_cast<int64_t>(key_store.element_size()),
  };
}

}  // namespace lazyllm
