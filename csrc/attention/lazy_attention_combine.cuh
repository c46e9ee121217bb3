// lazy_attention: what the splits of the keys found, put together.
#pragma once

#include "lazy_attention_block.cuh"

namespace lazyllm::cuda {

constexpr int kCombineThreads = 128;

/// \brief One warp adds up the splits of one (row, head), always in the same order. Rows of
/// sequences whose keys are not split have their results already.
///
/// launch.stats [splits, rows, H], launch.partial [splits, rows, H, D] -> op.output [R, H, D]
/// \tparam T of the output
template <typename T>
__global__ void __launch_bounds__(kCombineThreads)
    lazy_attention_combine_kernel(const AttentionLaunch launch) {
  const LazyAttentionParams& op = launch.op;
  const int64_t warp =
      (static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x) / kWarpSize;
  const int64_t row = warp / op.query.num_heads;
  const int64_t head = warp % op.query.num_heads;
  if (row >= op.query.rows) return;
  const SequencePlan plan =
      plan_sequence(launch, sequence_of(op.query.offsets, op.query.batch, row));
  if (plan.num_splits == 1 || row < plan.rows.begin || row >= plan.rows.end) return;
  const auto place_of = [&](int split) {
    return plan.scratch_of(split, row) * op.query.num_heads + head;
  };

  float maximum = -kInfinity;
#pragma unroll 4
  for (int split = 0; split < plan.num_splits; ++split) {
    maximum = fmaxf(maximum, launch.stats[place_of(split)].x);
  }
  const float reference = reference_logit(maximum);
  const int dim = static_cast<int>(op.query.head_dim);
  T* output = static_cast<T*>(op.output) + warp * dim;
  for (int column = threadIdx.x % kWarpSize; column < dim; column += kWarpSize) {
    float sum = 0.0f;
    float value = 0.0f;
    bool only_minus_infinity = false;
#pragma unroll 4
    for (int split = 0; split < plan.num_splits; ++split) {
      const int64_t place = place_of(split);
      const float2 stats = launch.stats[place];
      only_minus_infinity = only_minus_infinity || stats.y == kSawOnlyMinusInfinity;
      if (stats.y == kSawNothing || stats.y == kSawOnlyMinusInfinity) continue;
      const float weight = exp2f(stats.x - reference);
      sum += weight * stats.y;
      value += weight * launch.partial[place * dim + column];
    }
    const bool nothing = sum == 0.0f && !only_minus_infinity;
    output[column] = from_float<T>(nothing ? 0.0f : value / sum);
  }
}

}  // namespace lazyllm::cuda
