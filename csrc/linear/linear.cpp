#include "linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "../common/checks.h"

namespace lazyllm {
namespace {

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const Checks check("linear", x);
  check.floats("x", x, 2);
  check.floats("weight", weight, 2, x.scalar_type());
  check.size("weight", weight, 1, x.size(1));
  if (bias.has_value()) {
    check.floats("bias", *bias, 1, x.scalar_type());
    check.size("bias", *bias, 0, weight.size(0));
  }
  Tensor output = torch::stable::new_empty(x, {x.size(0), weight.size(0)});
  run<linear_cpu, linear_cuda>(LinearParams{
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .bias = bias.has_value() ? bias->const_data_ptr() : nullptr,
      .output = output.mutable_data_ptr(),
      .rows = x.size(0),
      .in = x.size(1),
      .out = weight.size(0),
      .x_stride = x.stride(0),
      .weight_stride = weight.stride(0),
      .dtype = x.scalar_type(),
      .device = check.device(),
  });
  return output;
}

}  // namespace

constinit Operator* const linear_operator = TORCH_BOX(&linear);

}  // namespace lazyllm
