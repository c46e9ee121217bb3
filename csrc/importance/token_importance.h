// token_importance: how much attention a few queries pay to each stored key.
//
//   importance[k] = sum_i (1/H) sum_h softmax_k(cap(scale * query[i, h] . key[k, h / (H / Hkv)]))
//
// over the queries i of k's sequence, each of which sees the used keys with key_index <=
// query_index[i]; cap(x) = softcap * tanh(x / softcap) if softcap > 0, else x.
//
//   query [R, H, D] float, query_index [R], query_offsets [B + 1]; index -1: the query adds nothing
//   key_store [slots, Hkv, D] of query's dtype, H % Hkv == 0
//   key_slots [K], key_index [K], key_offsets [B + 1]; used keys of a sequence ascend in key_index,
//   unused ones (slot -1) may lie anywhere
//   -> float32 [K], 0 for keys that no query sees and for unused ones
//
// Sums are taken in float32. NaN: a NaN or +inf logit takes no part in its softmax and makes only
// that key's result NaN; -inf has probability 0; a query head that holds a NaN adds nothing.
// Empty input is legal. Nothing is aliased. The same input gives the same bits on one machine, and
// a sequence gives in a batch what it gives alone (on CUDA to rounding: how its keys are split
// follows the whole batch).
#pragma once

#include "../common/packed.h"

namespace lazyllm {

struct TokenImportanceParams {
  Queries query;
  Keys key;
  float scale;
  float softcap;
  float* importance;  // [key.count]
  int32_t device = kCpu;
};

extern Operator* const token_importance_operator;

void token_importance_cpu(const TokenImportanceParams& params);
void token_importance_cuda(const TokenImportanceParams& params);

}  // namespace lazyllm
