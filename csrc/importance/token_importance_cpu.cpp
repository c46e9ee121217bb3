#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "token_importance.h"

namespace lazyllm {
namespace {

template <class T>
void score(const TokenImportanceParams& p, int64_t b) {
  const Queries& q = p.query;
  const Keys& k = p.key;
  const int64_t group = q.num_heads / k.num_kv_heads;
  constexpr float inf = std::numeric_limits<float>::infinity();
  std::vector<float> logits(k.offsets[b + 1] - k.offsets[b]);
  for (int64_t row = q.offsets[b]; row < q.offsets[b + 1]; ++row) {
    for (int64_t h = 0; h < q.num_heads && q.index[row] >= 0; ++h) {
      const T* query = static_cast<const T*>(q.data) + row * q.row_stride + h * q.head_stride;
      bool broken = false;
      for (int64_t d = 0; d < q.head_dim; ++d) broken |= std::isnan(float(query[d]));
      if (broken) continue;
      float top = -inf;
      for (int64_t i = k.offsets[b]; i < k.offsets[b + 1]; ++i) {
        float dot = -inf;
        if (k.slots[i] >= 0 && k.index[i] <= q.index[row]) {
          const T* key = static_cast<const T*>(k.data) + k.slots[i] * k.slot_stride + h / group * k.head_stride;
          dot = 0;
          for (int64_t d = 0; d < q.head_dim; ++d) dot += float(query[d]) * float(key[d]);
          dot *= p.scale;
          if (p.softcap > 0) dot = p.softcap * std::tanh(dot / p.softcap);
          if (std::isnan(dot) || dot == inf) {
            p.importance[i] = std::numeric_limits<float>::quiet_NaN();
            dot = -inf;
          }
        }
        logits[i - k.offsets[b]] = dot;
        top = std::max(top, dot);
      }
      if (top == -inf) continue;
      float total = 0;
      for (float& logit : logits) total += logit = std::exp(logit - top);
      for (size_t i = 0; i < logits.size(); ++i) {
        p.importance[k.offsets[b] + i] += logits[i] / (total * float(q.num_heads));
      }
    }
  }
}

}  // namespace

Tensor token_importance_cpu(const Tensor& query, const Tensor& query_index,
                            const Tensor& query_offsets, const Tensor& key_store,
                            const Tensor& key_slots, const Tensor& key_index,
                            const Tensor& key_offsets, double scale, double softcap) {
  const Checks check("token_importance", query);
  TokenImportanceParams p =
      check_token_importance(check, query, query_index, query_offsets, key_store, key_slots,
                             key_index, key_offsets, scale, softcap);
  check_packed_values(check, p.query, p.key);
  Tensor importance = torch::stable::new_zeros(query, {p.key.count}, ScalarType::Float);
  p.importance = importance.mutable_data_ptr<float>();
  for (int64_t b = 0; b < p.query.batch; ++b) {
    visit_float(p.query.dtype, [&](auto type) { score<typename decltype(type)::type>(p, b); });
  }
  return importance;
}

}  // namespace lazyllm
