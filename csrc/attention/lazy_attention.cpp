// The checks of lazy_attention that CPU and CUDA share.
#include "lazy_attention.h"

namespace lazyllm {

LazyAttentionParams check_lazy_attention(const Checks& check, const Tensor& query,
                                         const Tensor& query_index, const Tensor& query_offsets,
                                         const Tensor& key_store, const Tensor& value_store,
                                         const Tensor& key_slots, const Tensor& key_index,
                                         const Tensor& key_offsets, double scale, int64_t window,
                                         double softcap) {
  const Queries queries = check_queries(check, query, query_index, query_offsets);
  const Keys keys = check_keys(check, queries, key_store, key_slots, key_index, key_offsets);
  check.floats("value_store", value_store, 3, queries.dtype);
  check.size("value_store", value_store, 0, keys.num_slots);
  check.size("value_store", value_store, 1, keys.num_kv_heads);
  check.size("value_store", value_store, 2, queries.head_dim);
  check.at_least("window", window, 0);
  check.at_least("softcap", softcap, 0.0);
  return {
      .query = queries,
      .key = keys,
      .value = value_store.const_data_ptr(),
      .value_slot_stride = value_store.stride(0),
      .value_head_stride = value_store.stride(1),
      .scale = static_cast<float>(scale),
      .window = window,
      .softcap = static_cast<float>(softcap),
      .output = nullptr,
  };
}

}  // namespace lazyllm
