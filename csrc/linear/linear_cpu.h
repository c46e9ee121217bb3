// The parts of linear on the CPU: kernels that know no torch, one set for each instruction set and
// dtype.
#pragma once

#include "linear.h"

namespace lazyllm {

constexpr int64_t kLinearTile = 4;  // rows of the weights that are read together

struct LinearKernels {
  int64_t width;     // floats of a vector
  int64_t per_word;  // elements of a word, cpu/simd.h

  // params.x -> rows [rows, padded] of words, zero behind `in`.
  void (*pack_rows)(const LinearParams& params, int64_t padded, float* rows);
  // Columns begin .. end - 1 of the output. scratch: [rows, end - begin, and a vector more].
  void (*multiply)(const LinearParams& params, int64_t padded, const float* rows, int64_t begin,
                   int64_t end, float* scratch);
};

// Projections of the same rows: parts[0 .. count - 1], whose x, rows, in and dtype are equal. Their
// outputs are given; the rows are packed and the threads woken once.
void multiply_rows(const LinearParams* parts, int64_t count);

}  // namespace lazyllm
