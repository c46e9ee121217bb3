// The checks of rotate that CPU and CUDA share.
#include "rotate.h"

namespace lazyllm {

RotateParams check_rotate(const Checks& check, const Tensor& x, const Tensor& cos,
                          const Tensor& sin, bool interleaved) {
  check.floats("x", x, 3);
  const ScalarType dtype = x.scalar_type();
  check.floats("cos", cos, 2, dtype);
  check.floats("sin", sin, 2, dtype);
  check.size("cos", cos, 0, x.size(0));
  if (cos.size(1) > x.size(2) / 2) {
    check.refuse("cos", "at most " + std::to_string(x.size(2) / 2) + " in dimension 1",
                 std::to_string(cos.size(1)));
  }
  for (int64_t dim = 0; dim < 2; ++dim) check.size("sin", sin, dim, cos.size(dim));
  return {
      .x = x.const_data_ptr(),
      .cos = cos.const_data_ptr(),
      .sin = sin.const_data_ptr(),
      .output = nullptr,
      .rows = x.size(0),
      .num_heads = x.size(1),
      .head_dim = x.size(2),
      .half = cos.size(1),
      .x_row_stride = x.stride(0),
      .x_head_stride = x.stride(1),
      .cos_stride = cos.stride(0),
      .sin_stride = sin.stride(0),
      .interleaved = interleaved,
      .dtype = dtype,
  };
}

}  // namespace lazyllm
