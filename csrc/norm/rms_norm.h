// rms_norm: root mean square normalization, in one pass over each row.
//
//   rms_norm(x [R, D], weight [D], eps, offset) -> [R, D], contiguous
//
//   out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * (offset + weight)
//
// All float of one dtype; computed in float32, rounded once. The last dimension must have stride 1,
// other strides are honoured. NaN and infinities as in plain arithmetic: a row keeps its own. Empty
// input is legal. Deterministic; a row gives what it gives alone.
#pragma once

#include "../common/operator.h"

namespace lazyllm {

// Strides in elements.
struct RmsNormParams {
  const void* x;       // [rows, dim]
  const void* weight;  // [dim]
  void* output;        // [rows, dim], contiguous
  int64_t rows;
  int64_t dim;
  int64_t x_stride;
  float eps;
  float offset;
  ScalarType dtype;
  int32_t device = kCpu;
};

extern Operator* const rms_norm_operator;

void rms_norm_cpu(const RmsNormParams& params);
void rms_norm_cuda(const RmsNormParams& params);

}  // namespace lazyllm
