// token_importance on CUDA: logits with each split's softmax, then the norms, then the sums over
// query heads and rows. The keys are read once for a chunk of rows. A chunk is all rows of the call
// unless their logits would need more scratch than kMostLogits; then sums are taken chunk by chunk.
// Chunks and splits follow the batch, so that a sequence alone gives the same to rounding. Nothing is read back: a
// CUDA graph can capture all of it.

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../cuda/launch.cuh"
#include "../cuda/tensors.cuh"
#include "token_importance_logits.cuh"
#include "token_importance_reduce.cuh"

namespace lazyllm {
namespace {

constexpr char kOp[] = "token_importance";
constexpr int64_t kMostLogits = int64_t{32} << 20;  // 128 MiB
constexpr int64_t kMostBlocks = 256;

using cuda::ImportanceLaunch;
using cuda::Launcher;

template <typename T, int kPairs>
void launch_logits(const Launcher& launcher, const ImportanceLaunch& launch) {
  constexpr int64_t kUnit = cuda::kPack<T>;
  const TokenImportanceParams& op = launch.op;
  const int padded_dim = static_cast<int>((op.query.head_dim + kUnit - 1) / kUnit * kUnit);
  const dim3 grid(static_cast<unsigned>(op.query.batch * launch.most_blocks),
                  static_cast<unsigned>(op.key.num_kv_heads));
  launcher.launch(cuda::token_importance_logits_kernel<T, kPairs>, grid, cuda::kLogitThreads,
                  cuda::logits_shared_bytes<T, kPairs>(padded_dim), launch, padded_dim);
}

/// The three kernels for each chunk of the rows.
/// \tparam kPairs (token, head) pairs of a block
template <typename T, int kPairs>
void launch_chunks(const Launcher& launcher, ImportanceLaunch launch, const Tensor& query) {
  const TokenImportanceParams& op = launch.op;
  const int64_t logits_of_row = op.query.num_heads * op.key.count;
  const int64_t chunk = std::clamp<int64_t>(kMostLogits / logits_of_row, 1, op.query.rows);
  const int64_t wanted = 4 * launcher.num_multiprocessors();  // blocks of a sequence
  launch.most_blocks = static_cast<int>(std::clamp<int64_t>(
      (wanted + op.key.num_kv_heads - 1) / op.key.num_kv_heads, 1, kMostBlocks));
  const int most_splits =
      cuda::num_key_splits(1, op.key.count, cuda::kLeastKeys, launch.most_blocks);
  const int64_t places = chunk * op.query.num_heads;
  const Tensor logits = cuda::new_words(query, chunk * logits_of_row);
  const Tensor stats = cuda::new_words(query, most_splits * places * 2);
  const Tensor norms = cuda::new_words(query, places * 2);
  launch.logits = static_cast<float*>(logits.mutable_data_ptr());
  launch.stats = static_cast<float2*>(stats.mutable_data_ptr());
  launch.norms = static_cast<float2*>(norms.mutable_data_ptr());
  const auto blocks = [](int64_t count, int per_block) {
    return static_cast<unsigned>((count + per_block - 1) / per_block);
  };
  for (int64_t row = 0; row < op.query.rows; row += chunk) {
    launch.first_row = row;
    launch.end_row = std::min(row + chunk, op.query.rows);
    launch_logits<T, kPairs>(launcher, launch);
    launcher.launch(cuda::token_importance_norms_kernel, blocks(places, cuda::kNormThreads),
                    cuda::kNormThreads, 0, launch);
    launcher.launch(cuda::token_importance_reduce_kernel, blocks(op.key.count, cuda::kReduceKeys),
                    dim3(cuda::kReduceKeys, cuda::kReduceLanes), 0, launch);
  }
}

template <typename T>
void launch_type(const Launcher& launcher, ImportanceLaunch launch, const Tensor& query) {
  const TokenImportanceParams& op = launch.op;
  launch.vectorized =
      cuda::in_packs<T>(op.query.head_dim, {op.key.data}, {op.key.slot_stride, op.key.head_stride});
  const int64_t mean_rows = (op.query.rows + op.query.batch - 1) / op.query.batch;
  const int64_t pairs = mean_rows * launch.group;
  if (pairs <= 4) {
    launch_chunks<T, 4>(launcher, launch, query);
  } else if (pairs <= 8) {
    launch_chunks<T, 8>(launcher, launch, query);
  } else {
    launch_chunks<T, 16>(launcher, launch, query);
  }
}

}  // namespace

Tensor token_importance_cuda(const Tensor& query, const Tensor& query_index,
                             const Tensor& query_offsets, const Tensor& key_store,
                             const Tensor& key_slots, const Tensor& key_index,
                             const Tensor& key_offsets, double scale, double softcap) {
  const Checks check(kOp, query);
  TokenImportanceParams op =
      check_token_importance(check, query, query_index, query_offsets, key_store, key_slots,
                             key_index, key_offsets, scale, softcap);
  cuda::check_head_dim(check, op.query.head_dim);
  const Launcher launcher(kOp, query.get_device_index());
  Tensor importance = cuda::new_words(query, op.key.count);
  op.importance = static_cast<float*>(importance.mutable_data_ptr());
  if (op.key.count == 0) return importance;
  if (op.query.rows == 0 || op.query.num_heads == 0 || op.query.batch == 0) {
    return torch::stable::zero_(importance);
  }

  ImportanceLaunch launch{};
  launch.op = op;
  launch.group = static_cast<int>(op.query.num_heads / op.key.num_kv_heads);
  visit_float(op.query.dtype, [&](auto type) {
    launch_type<cuda::DeviceType<typename decltype(type)::type>>(launcher, launch, query);
  });
  return importance;
}

}  // namespace lazyllm
