// linear: a projection of few rows, x · weight^T + bias. A decoding step has one row or a few, and
// is bound by how fast the weights are read; libraries for matrix products are made for many rows.
//
//   linear(x [R, I], weight [O, I], bias [O] or none) -> [R, O], contiguous
//
// All float of one dtype; sums in float32, rounded once. The last dimension must have stride 1, other
// strides are honoured. NaN and infinities as in plain arithmetic. Empty input is legal: sums over
// nothing are 0. Deterministic; a row gives what it gives alone, but where the processor multiplies tiles
// of bfloat16 (AMX): there it does so from four rows on, and sums in another order than of fewer.
#pragma once

#include "../common/operator.h"

namespace lazyllm {

// Strides in elements.
struct LinearParams {
  const void* x;       // [rows, in]
  const void* weight;  // [out, in]
  const void* bias;    // [out], or null
  void* output;        // [rows, out], contiguous
  int64_t rows;
  int64_t in;
  int64_t out;
  int64_t x_stride;
  int64_t weight_stride;
  ScalarType dtype;
  int32_t device = kCpu;
};

extern Operator* const linear_operator;

void linear_cpu(const LinearParams& params);
void linear_cuda(const LinearParams& params);

}  // namespace lazyllm
