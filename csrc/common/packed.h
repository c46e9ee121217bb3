// The queries and the stored keys of a batch, as token_importance and lazy_attention read them.
//
// Everything ragged is packed: a flat tensor and offsets [batch + 1] into it. A token's index is its
// place in its own sequence; a slot is a row of a store; -1 in either list marks an unused place.
#pragma once

#include "checks.h"

namespace lazyllm {

struct Queries {
  const void* data;        // [rows, num_heads, head_dim], strides below, 1 in head_dim
  const int64_t* index;    // [rows], -1 unused
  const int64_t* offsets;  // [batch + 1] into rows
  int64_t batch;
  int64_t rows;
  int64_t num_heads;
  int64_t head_dim;
  int64_t row_stride;  // strides in elements, not bytes
  int64_t head_stride;
  ScalarType dtype;
};

struct Keys {
  const void* data;        // [num_slots, num_kv_heads, head_dim], dtype of the queries
  const int64_t* slots;    // [count] into num_slots, -1 unused
  const int64_t* index;    // [count], ascending among the used entries of a sequence
  const int64_t* offsets;  // [batch + 1] into count
  int64_t count;
  int64_t num_slots;
  int64_t num_kv_heads;  // query head h reads head h / (num_heads / num_kv_heads)
  int64_t slot_stride;   // strides in elements, not bytes
  int64_t head_stride;
};

Queries check_queries(const Checks& check, const Tensor& query, const Tensor& query_index,
                      const Tensor& query_offsets);
Keys check_keys(const Checks& check, const Queries& queries, const Tensor& key_store,
                const Tensor& key_slots, const Tensor& key_index, const Tensor& key_offsets);

// On the CPU: offsets, slots and indices are within bounds.
void check_packed_values(const char* op, const Queries& queries, const Keys& keys);

}  // namespace lazyllm
