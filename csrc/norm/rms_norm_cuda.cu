// rms_norm on CUDA: a warp for each row, 16 bytes a load where aligned.

#include "../cuda/launch.cuh"
#include "../cuda/tensors.cuh"
#include "rms_norm.h"

namespace lazyllm {
namespace cuda {
namespace {

constexpr int kRows = 4;  // of a block, a warp each

/// \brief The normalization, see rms_norm.h.
///
/// Grid (blocks of rows); block (warp, rows). No barrier, no shared memory.
/// op.x, op.output [rows, dim], op.weight [dim]
/// \tparam kStep elements of one load; dim, strides and addresses are multiples of it
template <typename T, int kStep>
__global__ void __launch_bounds__(kRows* kWarpSize) rms_norm_kernel(const RmsNormParams op) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= op.rows) return;
  const T* x = static_cast<const T*>(op.x) + row * op.x_stride;
  const T* weight = static_cast<const T*>(op.weight);
  T* to = static_cast<T*>(op.output) + row * op.dim;
  const int64_t own = static_cast<int64_t>(threadIdx.x) * kStep;
  float squares = 0.0f;
  for (int64_t i = own; i < op.dim; i += kWarpSize * kStep) {
    float values[kStep];
    widen_step<T, kStep>(x + i, values);
#pragma unroll
    for (int k = 0; k < kStep; ++k) squares = fmaf(values[k], values[k], squares);
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    squares += __shfl_xor_sync(kFullWarp, squares, distance);
  }
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(op.dim) + op.eps);
  for (int64_t i = own; i < op.dim; i += kWarpSize * kStep) {
    float values[kStep], factors[kStep];
    widen_step<T, kStep>(x + i, values);
    widen_step<T, kStep>(weight + i, factors);
#pragma unroll
    for (int k = 0; k < kStep; ++k) values[k] = values[k] * scale * (op.offset + factors[k]);
    narrow_step<T, kStep>(values, to + i);
  }
}

template <typename T>
void launch_rms_norm(const Launcher& launcher, const RmsNormParams& op) {
  const dim3 grid(static_cast<unsigned>((op.rows + kRows - 1) / kRows));
  const dim3 block(kWarpSize, kRows);
  if (in_packs<T>(op.dim, {op.x, op.weight, op.output}, {op.x_stride})) {
    launcher.launch(rms_norm_kernel<T, kPack<T>>, grid, block, 0, op);
  } else {
    launcher.launch(rms_norm_kernel<T, 1>, grid, block, 0, op);
  }
}

}  // namespace
}  // namespace cuda

Tensor rms_norm_cuda(const Tensor& x, const Tensor& weight, double eps, double offset) {
  constexpr char kOp[] = "rms_norm";
  RmsNormParams op = check_rms_norm(Checks(kOp, x), x, weight, eps, offset);
  const cuda::Launcher launcher(kOp, x.get_device_index());
  Tensor output = torch::stable::new_empty(x, {op.rows, op.dim});
  op.output = output.mutable_data_ptr();
  if (op.dim == 0) return output;
  visit_float(op.dtype, [&](auto type) {
    cuda::launch_rms_norm<cuda::DeviceType<typename decltype(type)::type>>(launcher, op);
  });
  return output;
}

}  // namespace lazyllm
