#include "kv_append.h"

#include <torch/csrc/stable/library.h>

#include "../common/checks.h"

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

void kv_append(Tensor key_store, Tensor value_store, const Tensor& slots, const Tensor& key,
               const Tensor& value) {
  const Checks check("kv_append_", key_store);
  check.floats("key_store", key_store, 3);
  const ScalarType dtype = key_store.scalar_type();
  check.floats("value_store", value_store, 3, dtype);
  check.floats("key", key, 3, dtype);
  check.floats("value", value, 3, dtype);
  check.sizes("value_store", value_store, key_store);
  check.index("slots", slots, key.size(0));
  check.sizes("key", key, key_store, 1);
  check.sizes("value", value, key);
  run<kv_append_cpu, kv_append_cuda>(KvAppendParams{
      .key = side_of(key_store, key),
      .value = side_of(value_store, value),
      .slots = slots.const_data_ptr<int64_t>(),
      .tokens = key.size(0),
      .num_slots = key_store.size(0),
      .num_kv_heads = key_store.size(1),
      .head_dim = key_store.size(2),
      .element_bytes = element_bytes(dtype),
      .device = check.device(),
  });
}

}  // namespace

constinit Operator* const kv_append_operator = TORCH_BOX(&kv_append);

}  // namespace lazyllm
