// rotate: rotary position embedding of queries or keys, in one pass over them.
//
//   rotate(x [R, H, D], cos [R, half], sin [R, half], interleaved) -> [R, H, D], contiguous
//
//   out[..., :half]        = first * cos - second * sin
//   out[..., half:2 half]  = second * cos + first * sin
//   out[..., 2 half:]      = x[..., 2 half:], bit by bit
//
// The components first and second are the halves of x[..., :2 half], or with `interleaved` its even
// and its odd places; they come out as halves either way. half is D / 2 at most, and may be 0.
//
// All float of one dtype; computed in float32, rounded once. The last dimension must have stride 1,
// other strides are honoured. NaN and infinities as in plain arithmetic: a pair keeps its own. Empty
// input is legal. Deterministic; a row gives what it gives alone.
#pragma once

#include "../common/checks.h"

namespace lazyllm {

// Strides in elements.
struct RotateParams {
  const void* x;    // [rows, num_heads, head_dim]
  const void* cos;  // [rows, half]
  const void* sin;  // [rows, half]
  void* output;     // [rows, num_heads, head_dim], contiguous
  int64_t rows;
  int64_t num_heads;
  int64_t head_dim;
  int64_t half;
  int64_t x_row_stride;
  int64_t x_head_stride;
  int64_t cos_stride;
  int64_t sin_stride;
  bool interleaved;
  ScalarType dtype;
  int32_t device = kCpu;
};

// cos and sin for heads of `head_dim`, of x's rows and dtype.
void check_rotary(const Checks& check, const Tensor& cos, const Tensor& sin, int64_t rows,
                  int64_t head_dim, ScalarType dtype);

extern Operator* const rotate_operator;

void rotate_cpu(const RotateParams& params);
void rotate_cuda(const RotateParams& params);

}  // namespace lazyllm
