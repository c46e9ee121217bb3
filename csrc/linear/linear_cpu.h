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

}  // namespace lazyllm
