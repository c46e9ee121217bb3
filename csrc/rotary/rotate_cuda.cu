// rotate on CUDA: each thread rotates a few neighbouring pairs of one head, 16 bytes a load where aligned.

#include <algorithm>

#include "../cuda/arguments.cuh"
#include "../cuda/launch.cuh"
#include "rotate.h"

namespace lazyllm {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostHeads = 65535;  // of a grid; more are taken in turns

/// \brief kStep pairs of a head from pair i on, rotated. Explicit fmaf, as on CPUs that have it.
///
/// x, to [head_dim]; cos, sin [half]
template <typename T, int kStep>
__device__ __forceinline__ void rotate_pairs(const T* x, const T* cos, const T* sin, int64_t half,
                                             bool interleaved, int64_t i, T* to) {
  float first[kStep], second[kStep], c[kStep], s[kStep];
  if (interleaved) {
    float low[kStep], high[kStep];
    widen_step<T, kStep>(x + 2 * i, low);
    widen_step<T, kStep>(x + 2 * i + kStep, high);
    const auto place = [&](int k) { return k < kStep ? low[k] : high[k - kStep]; };
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      first[k] = place(2 * k);
      second[k] = place(2 * k + 1);
    }
  } else {
    widen_step<T, kStep>(x + i, first);
    widen_step<T, kStep>(x + half + i, second);
  }
  widen_step<T, kStep>(cos + i, c);
  widen_step<T, kStep>(sin + i, s);
  float rotated_first[kStep], rotated_second[kStep];
#pragma unroll
  for (int k = 0; k < kStep; ++k) {
    rotated_first[k] = fmaf(first[k], c[k], -(second[k] * s[k]));
    rotated_second[k] = fmaf(second[k], c[k], first[k] * s[k]);
  }
  narrow_step<T, kStep>(rotated_first, to + i);
  narrow_step<T, kStep>(rotated_second, to + half + i);
}

/// One step as it is, bit by bit.
template <typename T, int kStep>
__device__ __forceinline__ void copy_step(const T* from, T* to) {
  if constexpr (kStep == 1) {
    *to = *from;
  } else {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  }
}

/// \brief The rotary embedding, see rotate.h.
///
/// Grid (blocks of rows, heads); block (threads of a head, rows). No barrier, no shared memory.
/// op.x [rows, num_heads, head_dim], op.cos, op.sin [rows, half], op.output as op.x, contiguous
/// \tparam kStep elements of one load; half, head_dim, strides and addresses are multiples of it
template <typename T, int kStep>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const RotateParams op) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= op.rows) return;
  const T* cos = static_cast<const T*>(op.cos) + row * op.cos_stride;
  const T* sin = static_cast<const T*>(op.sin) + row * op.sin_stride;
  for (int64_t head = blockIdx.y; head < op.num_heads; head += gridDim.y) {
    const T* x = static_cast<const T*>(op.x) + row * op.x_row_stride + head * op.x_head_stride;
    T* to = static_cast<T*>(op.output) + (row * op.num_heads + head) * op.head_dim;
    const int64_t own = static_cast<int64_t>(threadIdx.x) * kStep;
    const int64_t stride = static_cast<int64_t>(blockDim.x) * kStep;
    for (int64_t i = own; i < op.half; i += stride) {
      rotate_pairs<T, kStep>(x, cos, sin, op.half, op.interleaved, i, to);
    }
    for (int64_t i = 2 * op.half + own; i < op.head_dim; i += stride) {
      copy_step<T, kStep>(x + i, to + i);
    }
  }
}

/// A block for heads of `steps` steps: x threads share a head, y rows share the block.
dim3 block_of(int64_t steps) {
  unsigned x = 1;
  while (x < kThreads && x < steps) x *= 2;
  return {x, kThreads / x, 1};
}

template <typename T, int kStep>
void launch_steps(const Launcher& launcher, const RotateParams& op) {
  const dim3 block = block_of(std::max(op.half, op.head_dim - 2 * op.half) / kStep);
  const dim3 grid(num_blocks(op.rows, block.y),
                  static_cast<unsigned>(std::min(op.num_heads, kMostHeads)));
  launcher.launch(rotate_kernel<T, kStep>, grid, block, 0, op);
}

template <typename T>
void launch_rotate(const Launcher& launcher, const RotateParams& op) {
  if (in_packs<T>(op.half, {op.x, op.cos, op.sin, op.output},
                  {op.head_dim, op.x_row_stride, op.x_head_stride, op.cos_stride, op.sin_stride})) {
    launch_steps<T, kPack<T>>(launcher, op);
  } else {
    launch_steps<T, 1>(launcher, op);
  }
}

}  // namespace
}  // namespace cuda

void rotate_cuda(const RotateParams& op) {
  const cuda::Launcher launcher("rotate", op.device);
  if (op.head_dim == 0) return;
  cuda::visit_element(op.dtype,
                      [&](auto element) { cuda::launch_rotate<decltype(element)>(launcher, op); });
}

}  // namespace lazyllm
