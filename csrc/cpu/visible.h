// Which keys the rows of a sequence see: ranges of its used keys, since those ascend in their index.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/packed.h"

namespace lazyllm {

// A row that sees its sequence's used keys begin .. end - 1, at least one.
struct VisibleRow {
  int64_t row;  // in the packed rows of the batch
  int32_t begin;
  int32_t end;
};

struct Sequence {
  std::vector<VisibleRow>
      rows;              // ascending in end and in begin; rows that see nothing are left out
  const int64_t* slots;  // [num_keys] of the used keys
  int64_t num_keys;
  const int64_t* places;  // [num_keys] in the packed keys of the batch; null: first_place + i
  int64_t first_place;
  std::vector<int64_t> compacted;  // where slots and places lie if unused keys are among the used
};

// Sequence b of a batch whose values have been checked. Refuses keys that do not ascend.
Sequence visible_sequence(const char* op, const Queries& queries, const Keys& keys, int64_t b,
                          int64_t window);

}  // namespace lazyllm
