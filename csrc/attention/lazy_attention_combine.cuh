// lazy_attention: what the splits of the keys found, put together.
#pragma once

#include "lazy_attention_block.cuh"

namespace lazyllm::cuda {

constexpr int kCombineThreads = 128;

/// \brief One warp adds up the splits of one (row, head), always in the same order.
///
/// launch.stats [num_splits, R, H], launch.partial [num_splits, R, H, D] -> op.output [R, H, D]
/// \tparam T of the output
template <typename T>
__global__ void __launch_bounds__(kCombineThreads)
    lazy_attention_combine_kernel(const AttentionLaunch launch) {
  const LazyAttentionParams& op = launch.op;
  const int64_t num_places = op.query.rows * op.query.num_heads;
  const int64_t place = (static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x) / 32;
  if (place >= num_places) return;

  float maximum = -kInfinity;
  for (int split = 0; split < launch.num_splits; ++split) {
    maximum = fmaxf(maximum, launch.stats[split * num_places + place].x);
  }
  const float reference = reference_logit(maximum);
  const int dim = static_cast<int>(op.query.head_dim);
  T* output = static_cast<T*>(op.output) + place * dim;
  for (int column = threadIdx.x % kWarpSize; column < dim; column += kWarpSize) {
    float sum = 0.0f;
    float value = 0.0f;
    bool only_minus_infinity = false;
#pragma unroll 4
    for (int split = 0; split < launch.num_splits; ++split) {
      const float2 stats = launch.stats[split * num_places + place];
      only_minus_infinity = only_minus_infinity || stats.y == kSawOnlyMinusInfinity;
      if (stats.y == kSawNothing || stats.y == kSawOnlyMinusInfinity) continue;
      const float weight = exp2f(stats.x - reference);
      sum += weight * stats.y;
      value += weight * launch.partial[(split * num_places + place) * dim + column];
    }
    const bool nothing = sum == 0.0f && !only_minus_infinity;
    output[column] = from_float<T>(nothing ? 0.0f : value / sum);
  }
}

}  // namespace lazyllm::cuda
