// The checks of rms_norm that CPU and CUDA share.
#include "rms_norm.h"

namespace lazyllm {

RmsNormParams check_rms_norm(const Checks& check, const Tensor& x, const Tensor& weight, double eps,
                             double offset) {
  check.floats("x", x, 2);
  check.floats("weight", weight, 1, x.scalar_type());
  check.size("weight", weight, 0, x.size(1));
  check.at_least("eps", eps, 0.0);
  return {
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .output = nullptr,
      .rows = x.size(0),
      .dim = x.size(1),
      .x_stride = x.stride(0),
      .eps = static_cast<float>(eps),
      .offset = static_cast<float>(offset),
      .dtype = x.scalar_type(),
  };
}

}  // namespace lazyllm
