// linear on CUDA: a warp for each column of the output and a few rows, the weights read once for them.

#include "../cuda/arguments.cuh"
#include "../cuda/launch.cuh"
#include "linear.h"

namespace lazyllm {
namespace cuda {
namespace {

constexpr int kColumns = 4;  // of a block, a warp each
constexpr int kRows = 4;     // that share one reading of the weights

/// \brief output[r][c] = x[r] . weight[c] + bias[c]
///
/// Grid (blocks of columns, blocks of rows); block (warp, columns). No barrier, no shared memory.
/// op.x [rows, in], op.weight [out, in], op.output [rows, out]
/// \tparam kStep elements of one load; `in`, strides and addresses are multiples of it
template <typename T, int kStep>
__global__ void __launch_bounds__(kColumns* kWarpSize) linear_kernel(const LinearParams op) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.y;
  if (column >= op.out) return;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
  const int count = static_cast<int>(min(static_cast<int64_t>(kRows), op.rows - first));
  const T* weight = static_cast<const T*>(op.weight) + column * op.weight_stride;
  const T* x = static_cast<const T*>(op.x) + first * op.x_stride;
  float sum[kRows] = {};
  for (int64_t i = threadIdx.x * kStep; i < op.in; i += kWarpSize * kStep) {
    float w[kStep];
    widen_step<T, kStep>(weight + i, w);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float row[kStep];
      // Beyond the last row the last one again: cheaper than a branch, and never stored.
      widen_step<T, kStep>(x + min(r, count - 1) * op.x_stride + i, row);
#pragma unroll
      for (int k = 0; k < kStep; ++k) sum[r] = fmaf(w[k], row[k], sum[r]);
    }
  }
  const float bias = op.bias != nullptr ? to_float(static_cast<const T*>(op.bias)[column]) : 0.0f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      sum[r] += __shfl_xor_sync(kFullWarp, sum[r], distance);
    }
    if (threadIdx.x == 0 && r < count) {
      static_cast<T*>(op.output)[(first + r) * op.out + column] = from_float<T>(sum[r] + bias);
    }
  }
}

template <typename T>
void launch_linear(const Launcher& launcher, const LinearParams& op) {
  const dim3 grid(num_blocks(op.out, kColumns), num_blocks(op.rows, kRows));
  const dim3 block(kWarpSize, kColumns);
  if (in_packs<T>(op.in, {op.x, op.weight}, {op.x_stride, op.weight_stride})) {
    launcher.launch(linear_kernel<T, kPack<T>>, grid, block, 0, op);
  } else {
    launcher.launch(linear_kernel<T, 1>, grid, block, 0, op);
  }
}

}  // namespace
}  // namespace cuda

void linear_cuda(const LinearParams& op) {
  const cuda::Launcher launcher("linear", op.device);
  cuda::visit_element(op.dtype,
                      [&](auto element) { cuda::launch_linear<decltype(element)>(launcher, op); });
}

}  // namespace lazyllm
