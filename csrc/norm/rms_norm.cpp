#include "rms_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/checks.h"

namespace lazyllm {
namespace {

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, double offset) {
  const Checks check("rms_norm", x);
  check.floats("x", x, 2);
  check.floats("weight", weight, 1, x.scalar_type());
  check.size("weight", weight, 0, x.size(1));
  check.at_least("eps", eps, 0.0);
  Tensor output = torch::stable::new_empty(x, x.sizes());
  run<rms_norm_cpu, rms_norm_cuda>(RmsNormParams{
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .output = output.mutable_data_ptr(),
      .rows = x.size(0),
      .dim = x.size(1),
      .x_stride = x.stride(0),
      .eps = static_cast<float>(eps),
      .offset = static_cast<float>(offset),
      .dtype = x.scalar_type(),
      .device = check.device(),
  });
  return output;
}

}  // namespace

constinit Operator* const rms_norm_operator = TORCH_BOX(&rms_norm);

}  // namespace lazyllm
