// The checks of token_importance that CPU and CUDA share.
#include "token_importance.h"

namespace lazyllm {

TokenImportanceParams check_token_importance(const Checks& check, const Tensor& query,
                                             const Tensor& query_index, const Tensor& query_offsets,
                                             const Tensor& key_store, const Tensor& key_slots,
                                             const Tensor& key_index, const Tensor& key_offsets,
                                             double scale, double softcap) {
  const Queries queries = check_queries(check, query, query_index, query_offsets);
  const Keys keys = check_keys(check, queries, key_store, key_slots, key_index, key_offsets);
  check.at_least("softcap", softcap, 0.0);
  return {
      .query = queries,
      .key = keys,
      .scale = static_cast<float>(scale),
      .softcap = static_cast<float>(softcap),
      .importance = nullptr,
  };
}

}  // namespace lazyllm
