// gated_activation: the middle of a gated MLP (SwiGLU, GeGLU), in one pass over its two projections.
//
//   gated_activation(gate [R, I], up [R, I], activation) -> [R, I], contiguous
//
//   out = activation(gate) * up, where activation is "silu", x / (1 + e^-x), or "gelu_tanh",
//   x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
//
// All float of one dtype; computed in float32, rounded once (of bfloat16 within 9e-5 before it is
// rounded, a twentieth of what rounding it may change). The last dimension must have stride 1,
// other strides are honoured. NaN and infinities as in plain arithmetic. Empty input is legal.
// Deterministic; an element depends on nothing but its own two.
#pragma once

#include <string>

#include "../common/checks.h"

namespace lazyllm {

enum class Activation { silu, gelu_tanh };

// Strides in elements.
struct GatedActivationParams {
  const void* gate;  // [rows, inner]
  const void* up;    // [rows, inner]
  void* output;      // [rows, inner], contiguous; may be gate
  int64_t rows;
  int64_t inner;
  int64_t gate_stride;
  int64_t up_stride;
  Activation activation;
  ScalarType dtype;
  int32_t device = kCpu;
};

// Refuses other names than those above.
Activation check_activation(const Checks& check, const std::string& activation);

extern Operator* const gated_activation_operator;

void gated_activation_cpu(const GatedActivationParams& params);
void gated_activation_cuda(const GatedActivationParams& params);

}  // namespace lazyllm
