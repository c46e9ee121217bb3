#include <torch/csrc/stable/ops.h>

#include <cstring>

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

void copy_rows(const AuxRowsParams& p, void (*copy)(const AuxRowsParams&, int64_t, int64_t)) {
  torch::stable::parallel_for(0, p.count, copy_grain(p.row_bytes),
                              [&](int64_t begin, int64_t end) { copy(p, begin, end); });
}

bool is_words(const AuxRowsParams& p) { return p.row_bytes == sizeof(int64_t); }

}  // namespace

Tensor aux_gather_cpu(const Tensor& source, const Tensor& index) {
  const Checks check("aux_gather", source);
  AuxRowsParams p = check_aux_gather(check, source, index);
  check.index_values("index", p.index, p.count, p.num_stored);
  Tensor rows = new_aux_rows(source, index);
  p.to = static_cast<char*>(rows.mutable_data_ptr());
  if (p.row_bytes > 0) copy_rows(p, is_words(p) ? gather_words : gather_rows);
  return rows;
}

void aux_scatter_cpu(Tensor destination, const Tensor& index, const Tensor& rows) {
  const Checks check("aux_scatter_", destination);
  const AuxRowsParams p = check_aux_scatter(check, destination, index, rows);
  check.index_values("index", p.index, p.count, p.num_stored);
  if (p.row_bytes > 0) copy_rows(p, is_words(p) ? scatter_words : scatter_rows);
}

}  // namespace lazyllm
