#include "packed.h"

#include <limits>

#include "values.h"

namespace lazyllm {

Queries check_queries(const Checks& check, const Tensor& query, const Tensor& query_index,
                      const Tensor& query_offsets) {
  check.floats("query", query, 3);
  check.index("query_index", query_index, query.size(0));
  check.index("query_offsets", query_offsets);
  if (query_offsets.size(0) < 1) check.refuse("query_offsets", "at least 1 offset", "shape [0]");
  return {
      .data = query.const_data_ptr(),
      .index = query_index.const_data_ptr<int64_t>(),
      .offsets = query_offsets.const_data_ptr<int64_t>(),
      .batch = query_offsets.size(0) - 1,
      .rows = query.size(0),
      .num_heads = query.size(1),
      .head_dim = query.size(2),
      .row_stride = query.stride(0),
      .head_stride = query.stride(1),
      .dtype = query.scalar_type(),
  };
}

Keys check_keys(const Checks& check, const Queries& queries, const Tensor& key_store,
                const Tensor& key_slots, const Tensor& key_index, const Tensor& key_offsets) {
  check.floats("key_store", key_store, 3, queries.dtype);
  check.size("key_store", key_store, 2, queries.head_dim);
  const int64_t num_kv_heads = key_store.size(1);
  if (num_kv_heads < 1 || queries.num_heads % num_kv_heads != 0) {
    check.refuse("key_store",
                 "a number of heads that divides the query's " + std::to_string(queries.num_heads),
                 std::to_string(num_kv_heads));
  }
  check.index("key_slots", key_slots);
  check.index("key_index", key_index, key_slots.size(0));
  check.index("key_offsets", key_offsets, queries.batch + 1);
  return {
      .data = key_store.const_data_ptr(),
      .slots = key_slots.const_data_ptr<int64_t>(),
      .index = key_index.const_data_ptr<int64_t>(),
      .offsets = key_offsets.const_data_ptr<int64_t>(),
      .count = key_slots.size(0),
      .num_slots = key_store.size(0),
      .num_kv_heads = num_kv_heads,
      .slot_stride = key_store.stride(0),
      .head_stride = key_store.stride(1),
  };
}

void check_packed_values(const char* op, const Queries& queries, const Keys& keys) {
  constexpr int64_t any = std::numeric_limits<int64_t>::max();
  check_offset_values(op, "query_offsets", queries.offsets, queries.batch, queries.rows);
  check_offset_values(op, "key_offsets", keys.offsets, queries.batch, keys.count);
  check_index_values(op, "query_index", queries.index, queries.rows, any);
  check_index_values(op, "key_slots", keys.slots, keys.count, keys.num_slots);
  check_index_values(op, "key_index", keys.index, keys.count, any);
}

}  // namespace lazyllm
