#include "rotate.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace lazyllm {
namespace {

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  const Checks check("rotate", x);
  check.floats("x", x, 3);
  check_rotary(check, cos, sin, x.size(0), x.size(2), x.scalar_type());
  Tensor output = torch::stable::new_empty(x, x.sizes());
  run<rotate_cpu, rotate_cuda>(RotateParams{
      .x = x.const_data_ptr(),
      .cos = cos.const_data_ptr(),
      .sin = sin.const_data_ptr(),
      .output = output.mutable_data_ptr(),
      .rows = x.size(0),
      .num_heads = x.size(1),
      .head_dim = x.size(2),
      .half = cos.size(1),
      .x_row_stride = x.stride(0),
      .x_head_stride = x.stride(1),
      .cos_stride = cos.stride(0),
      .sin_stride = sin.stride(0),
      .interleaved = interleaved,
      .dtype = x.scalar_type(),
      .device = check.device(),
  });
  return output;
}

}  // namespace

void check_rotary(const Checks& check, const Tensor& cos, const Tensor& sin, int64_t rows,
                  int64_t head_dim, ScalarType dtype) {
  check.floats("cos", cos, 2, dtype);
  check.floats("sin", sin, 2, dtype);
  check.size("cos", cos, 0, rows);
  if (cos.size(1) > head_dim / 2) {
    check.refuse("cos", "at most " + std::to_string(head_dim / 2) + " in dimension 1",
                 std::to_string(cos.size(1)));
  }
  check.sizes("sin", sin, cos);
}

constinit Operator* const rotate_operator = TORCH_BOX(&rotate);

}  // namespace lazyllm
