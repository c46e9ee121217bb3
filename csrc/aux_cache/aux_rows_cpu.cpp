#include <cstring>

#include "../common/values.h"
#include "../cpu/parallel.h"
#include "aux_rows.h"

namespace lazyllm {
namespace {

// A token table has rows of one int64: a loop of plain loads and stores, not of calls to memcpy.
void gather_words(const AuxRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    int64_t word = 0;
    if (p.index[r] >= 0) std::memcpy(&word, p.from + p.index[r] * p.from_stride, sizeof(word));
    std::memcpy(p.to + r * sizeof(word), &word, sizeof(word));
  }
}

void gather_rows(const AuxRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    char* to = p.to + r * p.to_stride;
    if (p.index[r] >= 0) {
      std::memcpy(to, p.from + p.index[r] * p.from_stride, p.row_bytes);
    } else {
      std::memset(to, 0, p.row_bytes);
    }
  }
}

void scatter_words(const AuxRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    int64_t word;
    std::memcpy(&word, p.from + r * p.from_stride, sizeof(word));
    if (p.index[r] >= 0) std::memcpy(p.to + p.index[r] * p.to_stride, &word, sizeof(word));
  }
}

void scatter_rows(const AuxRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    if (p.index[r] < 0) continue;
    std::memcpy(p.to + p.index[r] * p.to_stride, p.from + r * p.from_stride, p.row_bytes);
  }
}

// Copies with `words` where rows are one word, otherwise with `rows`.
template <class Copy>
void copy_rows(const AuxRowsParams& p, Copy* words, Copy* rows) {
  Copy* copy = p.row_bytes == sizeof(int64_t) ? words : rows;
  copy_in_parallel(p.count, p.row_bytes, [&](int64_t begin, int64_t end) { copy(p, begin, end); });
}

}  // namespace

void aux_gather_cpu(const AuxRowsParams& p) {
  check_index_values("aux_gather", "index", p.index, p.count, p.num_stored);
  copy_rows(p, gather_words, gather_rows);
}

void aux_scatter_cpu(const AuxRowsParams& p) {
  check_index_values("aux_scatter_", "index", p.index, p.count, p.num_stored);
  copy_rows(p, scatter_words, scatter_rows);
}

}  // namespace lazyllm
