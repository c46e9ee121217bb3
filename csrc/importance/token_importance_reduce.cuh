// token_importance, second and third kernel: the softmax of every query head over all splits, and
// the probabilities of a key summed over query heads.
#pragma once

#include "token_importance_logits.cuh"

namespace lazyllm::cuda {

constexpr int kNormThreads = 128;
constexpr int kReduceKeys = 32;  // of a block, neighbouring threads
constexpr int kReduceLanes = 8;  // threads that share a key

/// \brief launch.stats [splits, rows, H] -> launch.norms [rows, H], splits in their order.
///
/// A thread for each (row, head) of the chunk.
__global__ void __launch_bounds__(kNormThreads)
    token_importance_norms_kernel(const ImportanceLaunch launch) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kNormThreads + threadIdx.x;
  const int64_t num_places = launch.num_places();
  if (place >= num_places) return;
  const Queries& query = launch.op.query;
  const int64_t row = launch.first_row + place / query.num_heads;
  const int num_splits =
      plan_sequence(launch, sequence_of(query.offsets, query.batch, row)).num_splits;
  SoftmaxPart all;
  bool skipped = false;
  for (int split = 0; split < num_splits; ++split) {
    const float2 part = launch.stats[split * num_places + place];
    skipped = skipped || part.y == kNoQuery;
    all.add(part);
  }
  launch.norms[place] = {all.maximum,
                         skipped ? kNoQuery : (all.sum > 0.0f ? 1.0f / all.sum : 0.0f)};
}

/// One lane's share of the probabilities that the chunk's rows give a key.
__device__ __forceinline__ float sum_probabilities(const ImportanceLaunch& launch, int64_t key,
                                                   int lane) {
  const TokenImportanceParams& op = launch.op;
  const int64_t b = sequence_of(op.key.offsets, op.query.batch, key);
  const ImportancePlan plan = plan_sequence(launch, b);
  const int index = narrow_index(op.key.index[key]);
  if (key < plan.keys.begin || key >= plan.keys.end || index < 0 ||
      !is_used(op.key.slots[key], op.key.num_slots)) {
    return 0.0f;
  }
  const int num_heads = static_cast<int>(op.query.num_heads);
  int64_t row = plan.rows.begin;
  float sum = 0.0f;
  for (int head = lane; row < plan.rows.end; head += kReduceLanes) {
    while (head >= num_heads) {
      head -= num_heads;
      ++row;
    }
    if (row >= plan.rows.end) break;
    if (index > narrow_index(op.query.index[row])) continue;
    const int64_t place = launch.place(row, head);
    const float2 norm = launch.norms[place];
    if (norm.y == kNoQuery) continue;
    const float logit = launch.logits[place * op.key.count + key];
    if (!is_sound(logit)) {
      sum = __int_as_float(0x7fc00000);  // NaN, from here on
    } else if (norm.y > 0.0f) {
      sum += expf(logit - norm.x) * norm.y;
    }
  }
  return sum;
}

/// \brief Adds what the chunk's rows give each key to op.importance [K]; the first chunk sets it.
///
/// Block (keys, lanes): the lanes of a key take (row, head) pairs in turn, and lane 0 adds them up,
/// always in the same order. launch.logits [rows, H, K], launch.norms [rows, H]
__global__ void __launch_bounds__(kReduceKeys* kReduceLanes)
    token_importance_reduce_kernel(const ImportanceLaunch launch) {
  __shared__ float sums[kReduceLanes][kReduceKeys];
  const TokenImportanceParams& op = launch.op;
  const int64_t key = static_cast<int64_t>(blockIdx.x) * kReduceKeys + threadIdx.x;
  const bool mine = key < op.key.count;
  sums[threadIdx.y][threadIdx.x] = mine ? sum_probabilities(launch, key, threadIdx.y) : 0.0f;
  __syncthreads();
  if (!mine || threadIdx.y != 0) return;
  float sum = 0.0f;
#pragma unroll
  for (int lane = 0; lane < kReduceLanes; ++lane) sum += sums[lane][threadIdx.x];
  const float before = launch.first_row == 0 ? 0.0f : op.importance[key];
  op.importance[key] = before + sum / static_cast<float>(op.query.num_heads);
}

}  // namespace lazyllm::cuda
