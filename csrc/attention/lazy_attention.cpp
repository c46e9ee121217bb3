#include "lazy_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace lazyllm {
namespace {

Tensor lazy_attention(const Tensor& query, const Tensor& query_index, const Tensor& query_offsets,
                      const Tensor& key_store, const Tensor& value_store, const Tensor& key_slots,
                      const Tensor& key_index, const Tensor& key_offsets, double scale,
                      int64_t window, double softcap) {
  const Checks check("lazy_attention", query);
  const Queries queries = check_queries(check, query, query_index, query_offsets);
  const Keys keys = check_keys(check, queries, key_store, key_slots, key_index, key_offsets);
  check.floats("value_store", value_store, 3, queries.dtype);
  check.sizes("value_store", value_store, key_store);
  check.at_least("window", window, 0);
  check.at_least("softcap", softcap, 0.0);
  Tensor output = torch::stable::new_empty(query, query.sizes());
  run<lazy_attention_cpu, lazy_attention_cuda>(LazyAttentionParams{
      .query = queries,
      .key = keys,
      .value = value_store.const_data_ptr(),
      .value_slot_stride = value_store.stride(0),
      .value_head_stride = value_store.stride(1),
      .scale = static_cast<float>(scale),
      .window = window,
      .softcap = static_cast<float>(softcap),
      .output = output.mutable_data_ptr(),
      .device = check.device(),
  });
  return output;
}

}  // namespace

constinit Operator* const lazy_attention_operator = TORCH_BOX(&lazy_attention);

}  // namespace lazyllm
