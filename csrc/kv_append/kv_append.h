// kv_append_: new keys and values into the stores, at their slots.
//
//   key_store[slots[t]] = key[t], value_store[slots[t]] = value[t]; slot -1 is skipped
//
//   key_store, value_store [num_slots, Hkv, D] float; slots [T], distinct (not checked)
//   key, value [T, Hkv, D] of the stores' dtype
//
// The last dimension must have stride 1, other strides are honoured. Copied bit by bit, NaN
// included. New and stored tensors must not overlap. Empty input is legal. Deterministic.
#pragma once

#include "../common/operator.h"

namespace lazyllm {

// Keys or values of the call; the strides are in elements.
struct KvAppendSide {
  const void* from;  // [tokens, num_kv_heads, head_dim]
  void* to;          // [num_slots, num_kv_heads, head_dim]
  int64_t from_token_stride;
  int64_t from_head_stride;
  int64_t to_slot_stride;
  int64_t to_head_stride;
};

struct KvAppendParams {
  KvAppendSide key;
  KvAppendSide value;
  const int64_t* slots;  // [tokens], -1 unused
  int64_t tokens;
  int64_t num_slots;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t element_bytes;
  int32_t device = kCpu;
};

extern Operator* const kv_append_operator;

void kv_append_cpu(const KvAppendParams& params);
void kv_append_cuda(const KvAppendParams& params);

}  // namespace lazyllm
