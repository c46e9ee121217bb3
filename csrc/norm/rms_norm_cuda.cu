// rms_norm on CUDA: a warp for each row, 16 bytes a load where aligned.

#include "../cuda/arguments.cuh"
#include "../cuda/launch.cuh"
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
  const dim3 grid(num_blocks(op.rows, kRows));
  const dim3 block(kWarpSize, kRows);
  if (in_packs<T>(op.dim, {op.x, op.weight, op.output}, {op.x_stride})) {
    launcher.launch(rms_norm_kernel<T, kPack<T>>, grid, block, 0, op);
  } else {
    launcher.launch(rms_norm_kernel<T, 1>, grid, block, 0, op);
  }
}

}  // namespace
}  // namespace cuda

void rms_norm_cuda(const RmsNormParams& op) {
  const cuda::Launcher launcher("rms_norm", op.device);
  if (op.dim == 0) return;
  cuda::visit_element(
      op.dtype, [&](auto element) { cuda::launch_rms_norm<decltype(element)>(launcher, op); });
}

}  // namespace lazyllm
