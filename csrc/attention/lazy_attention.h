// lazy_attention: causal attention by token index over an indexed set of stored keys.
//
//   output[r, h] = softmax_k(cap(scale * query[r, h] . key[k, h / (H / Hkv)])) . value[k, h / (H / Hkv)]
//
// over the used keys k of r's sequence with key_index <= query_index[r] and, if window > 0,
// key_index > query_index[r] - window; cap(x) = softcap * tanh(x / softcap) if softcap > 0, else x.
//
//   query [R, H, D] float, query_index [R], query_offsets [B + 1]; rows of a sequence in any order
//   key_store, value_store [slots, Hkv, D] of query's dtype, H % Hkv == 0
//   key_slots [K], key_index [K], key_offsets [B + 1]; used keys of a sequence ascend in key_index,
//   unused ones (slot -1) may lie anywhere
//   -> [R, H, D] of query's dtype, contiguous; zeros for rows that see no key or have index -1
//
// Sums are taken in float32. NaN behaves as in plain softmax attention over the visible keys; keys
// and values that a row does not see never reach its result. Empty input is legal. Nothing is
// aliased. The same input gives the same bits on one machine, and a sequence gives in a batch what
// it gives alone (on CUDA to rounding: how its keys are split follows the whole batch).
#pragma once

#include "../common/packed.h"

namespace lazyllm {

struct LazyAttentionParams {
  Queries query;
  Keys key;
  const void* value;  // [key.num_slots, key.num_kv_heads, query.head_dim]
  int64_t value_slot_stride;
  int64_t value_head_stride;
  float scale;
  int64_t window;  // 0: none
  float softcap;   // 0: none
  void* output;    // [query.rows, num_heads, head_dim], contiguous
  int32_t device = kCpu;
};

extern Operator* const lazy_attention_operator;

void lazy_attention_cpu(const LazyAttentionParams& params);
void lazy_attention_cuda(const LazyAttentionParams& params);

}  // namespace lazyllm
