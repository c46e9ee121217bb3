// The checks of linear that CPU and CUDA share.
#include "linear.h"

namespace lazyllm {

LinearParams check_linear(const Checks& check, const Tensor& x, const Tensor& weight,
                          const std::optional<Tensor>& bias) {
  check.floats("x", x, 2);
  const ScalarType dtype = x.scalar_type();
  check.floats("weight", weight, 2, dtype);
  check.size("weight", weight, 1, x.size(1));
  if (bias.has_value()) {
    check.floats("bias", *bias, 1, dtype);
    check.size("bias", *bias, 0, weight.size(0));
  }
  return {
      .x = x.const_data_ptr(),
      .weight = weight.const_data_ptr(),
      .bias = bias.has_value() ? bias->const_data_ptr() : nullptr,
      .output = nullptr,
      .rows = x.size(0),
      .in = x.size(1),
      .out = weight.size(0),
      .x_stride = x.stride(0),
      .weight_stride = weight.stride(0),
      .dtype = dtype,
  };
}

}  // namespace lazyllm
