// token_importance on CUDA: logits with each split's softmax, then the norms, then the sums over
// query heads and rows. The keys are read once for a chunk of rows. A chunk is all rows of the call
// unless their logits would need more scratch than kMostLogits; then sums are taken chunk by chunk.
// Chunks and splits follow the batch, so that a sequence alone gives the same to rounding. Nothing is read back: a
// CUDA graph can capture all of it.

#include <algorithm>

#include "../cuda/arguments.cuh"
#include "../cuda/launch.cuh"
#include "token_importance_logits.cuh"
#include "token_importance_reduce.cuh"

namespace lazyllm {
namespace {

constexpr char kOp[] = "token_importance";
constexpr int64_t kMostLogits = int64_t{32} << 20;  // 128 MiB
constexpr int64_t kMostBlocks = 256;

using cuda::DeviceMemory;
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
void launch_chunks(const Launcher& launcher, ImportanceLaunch launch) {
  const TokenImportanceParams& op = launch.op;
  const int64_t logits_of_row = op.query.num_heads * op.key.count;
  const int64_t chunk = std::clamp<int64_t>(kMostLogits / logits_of_row, 1, op.query.rows);
  const int64_t wanted = 4 * launcher.num_multiprocessors();  // blocks of a sequence
  launch.most_blocks = static_cast<int>(std::clamp<int64_t>(
      (wanted + op.key.num_kv_heads - 1) / op.key.num_kv_heads, 1, kMostBlocks));
  const int most_splits =
      cuda::num_key_splits(1, op.key.count, cuda::kLeastKeys, launch.most_blocks);
  const int64_t places = chunk * op.query.num_heads;
  const DeviceMemory<float> logits = launcher.allocate<float>(chunk * logits_of_row);
  const DeviceMemory<float2> stats = launcher.allocate<float2>(most_splits * places);
  const DeviceMemory<float2> norms = launcher.allocate<float2>(places);
  launch.logits = logits.data();
  launch.stats = stats.data();
  launch.norms = norms.data();
  for (int64_t row = 0; row < op.query.rows; row += chunk) {
    launch.first_row = row;
    launch.end_row = std::min(row + chunk, op.query.rows);
    launch_logits<T, kPairs>(launcher, launch);
    launcher.launch(cuda::token_importance_norms_kernel,
                    cuda::num_blocks(places, cuda::kNormThreads), cuda::kNormThreads, 0, launch);
    launcher.launch(cuda::token_importance_reduce_kernel,
                    cuda::num_blocks(op.key.count, cuda::kReduceKeys),
                    dim3(cuda::kReduceKeys, cuda::kReduceLanes), 0, launch);
  }
}

template <typename T>
void launch_type(const Launcher& launcher, ImportanceLaunch launch) {
  const TokenImportanceParams& op = launch.op;
  launch.vectorized =
      cuda::in_packs<T>(op.query.head_dim, {op.key.data}, {op.key.slot_stride, op.key.head_stride});
  const int64_t mean_rows = (op.query.rows + op.query.batch - 1) / op.query.batch;
  const int64_t pairs = mean_rows * launch.group;
  if (pairs <= 4) {
    launch_chunks<T, 4>(launcher, launch);
  } else if (pairs <= 8) {
    launch_chunks<T, 8>(launcher, launch);
  } else {
    launch_chunks<T, 16>(launcher, launch);
  }
}

}  // namespace

void token_importance_cuda(const TokenImportanceParams& op) {
  cuda::check_head_dim(kOp, op.query.head_dim);
  const Launcher launcher(kOp, op.device);
  if (op.key.count == 0) return;
  if (op.query.rows == 0 || op.query.num_heads == 0 || op.query.batch == 0) {
    launcher.fill(op.importance, 0, op.key.count * static_cast<int64_t>(sizeof(float)));
    return;
  }
  ImportanceLaunch launch{};
  launch.op = op;
  launch.group = static_cast<int>(op.query.num_heads / op.key.num_kv_heads);
  cuda::visit_element(op.query.dtype,
                      [&](auto element) { launch_type<decltype(element)>(launcher, launch); });
}

}  // namespace lazyllm
