// gated_activation on CUDA: a thread for each 16 bytes where aligned.

#include "../cuda/arguments.cuh"
#include "../cuda/launch.cuh"
#include "gated_activation.h"

namespace lazyllm {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float activate(float x, Activation activation) {
  if (activation == Activation::silu) return x / (1.0f + expf(-x));
  return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * fmaf(0.044715f * x * x, x, x)));
}

/// \brief The gate, see gated_activation.h.
///
/// Grid (rows); block (threads). No barrier, no shared memory.
/// op.gate, op.up, op.output [rows, inner]
/// \tparam kStep elements of one load; inner, strides and addresses are multiples of it
template <typename T, int kStep>
__global__ void __launch_bounds__(kThreads)
    gated_activation_kernel(const GatedActivationParams op) {
  const int64_t row = blockIdx.x;
  const T* gate = static_cast<const T*>(op.gate) + row * op.gate_stride;
  const T* up = static_cast<const T*>(op.up) + row * op.up_stride;
  T* to = static_cast<T*>(op.output) + row * op.inner;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kStep; i < op.inner; i += kThreads * kStep) {
    float values[kStep], factors[kStep];
    widen_step<T, kStep>(gate + i, values);
    widen_step<T, kStep>(up + i, factors);
#pragma unroll
    for (int k = 0; k < kStep; ++k) values[k] = activate(values[k], op.activation) * factors[k];
    narrow_step<T, kStep>(values, to + i);
  }
}

template <typename T>
void launch_gated_activation(const Launcher& launcher, const GatedActivationParams& op) {
  const dim3 grid(static_cast<unsigned>(op.rows));
  const dim3 block(kThreads);
  if (in_packs<T>(op.inner, {op.gate, op.up, op.output}, {op.gate_stride, op.up_stride})) {
    launcher.launch(gated_activation_kernel<T, kPack<T>>, grid, block, 0, op);
  } else {
    launcher.launch(gated_activation_kernel<T, 1>, grid, block, 0, op);
  }
}

}  // namespace
}  // namespace cuda

void gated_activation_cuda(const GatedActivationParams& op) {
  const cuda::Launcher launcher("gated_activation", op.device);
  if (op.rows == 0 || op.inner == 0) return;
  cuda::visit_element(op.dtype, [&](auto element) {
    cuda::launch_gated_activation<decltype(element)>(launcher, op);
  });
}

}  // namespace lazyllm
