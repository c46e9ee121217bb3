#include "token_importance.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace lazyllm {
namespace {

Tensor token_importance(const Tensor& query, const Tensor& query_index, const Tensor& query_offsets,
                        const Tensor& key_store, const Tensor& key_slots, const Tensor& key_index,
                        const Tensor& key_offsets, double scale, double softcap) {
  const Checks check("token_importance", query);
  const Queries queries = check_queries(check, query, query_index, query_offsets);
  const Keys keys = check_keys(check, queries, key_store, key_slots, key_index, key_offsets);
  check.at_least("softcap", softcap, 0.0);
  Tensor importance = torch::stable::new_empty(query, {keys.count}, ScalarType::Float);
  run<token_importance_cpu, token_importance_cuda>(TokenImportanceParams{
      .query = queries,
      .key = keys,
      .scale = static_cast<float>(scale),
      .softcap = static_cast<float>(softcap),
      .importance = importance.mutable_data_ptr<float>(),
      .device = check.device(),
  });
  return importance;
}

}  // namespace

constinit Operator* const token_importance_operator = TORCH_BOX(&token_importance);

}  // namespace lazyllm
