// lazy_attention on CUDA: one kernel for few rows and for many. Its blocks take the (token, head)
// pairs of one key head, so grouped query heads read keys and values once. Where the rows of a
// sequence alone make too few blocks to fill the device, as in decoding, its keys are split over
// blocks too and a second kernel adds the splits up. How a sequence is divided is decided on the
// device. Nothing is read back: a CUDA graph can capture all of it.

#include <algorithm>
#include <type_traits>

#include "../cuda/arguments.cuh"
#include "../cuda/launch.cuh"
#include "lazy_attention_combine.cuh"
#include "lazy_attention_fma.cuh"
#include "lazy_attention_mma.cuh"

namespace lazyllm {
namespace {

constexpr char kOp[] = "lazy_attention";

using cuda::AttentionLaunch;
using cuda::DeviceMemory;
using cuda::Launcher;

/// What can come up in the sequences of a call, as far as the host can tell.
struct Needs {
  bool short_sequences;
  bool long_sequences;
  bool splits;
};

Needs find_needs(const AttentionLaunch& launch) {
  const LazyAttentionParams& op = launch.op;
  const int64_t blocks = cuda::num_pair_blocks(op.query.rows, launch.group, launch.pairs_per_block);
  const bool many = blocks > launch.most_blocks;
  const bool one = op.query.batch == 1;
  const int splits =
      cuda::num_key_splits(one ? blocks : 1, op.key.count, launch.least_keys, launch.most_blocks);
  return {!one || !many, many, splits > 1};
}

/// Scratch for the splits' results. A sequence of r rows in b blocks of pairs has at most
/// most_blocks / b splits, so it needs at most r · most_blocks rows of scratch, and at most
/// most_blocks · pairs_per_block / group. The layout is the smaller one of these two.
struct SplitScratch {
  DeviceMemory<float> partial;
  DeviceMemory<float2> stats;
};

SplitScratch new_scratch(const Launcher& launcher, AttentionLaunch& launch) {
  const Queries& shape = launch.op.query;
  const int64_t by_rows = shape.rows * launch.most_blocks;
  const int64_t per_sequence = launch.most_blocks * launch.pairs_per_block / launch.group;
  launch.rows_per_sequence = shape.batch * per_sequence < by_rows ? per_sequence : 0;
  const int64_t places = std::min(by_rows, shape.batch * per_sequence) * shape.num_heads;
  SplitScratch scratch = {launcher.allocate<float>(places * shape.head_dim),
                          launcher.allocate<float2>(places)};
  launch.partial = scratch.partial.data();
  launch.stats = scratch.stats.data();
  return scratch;
}

/// Attention, and the second kernel where keys may be split.
template <typename T>
void launch_kernels(const Launcher& launcher, AttentionLaunch launch,
                    void (*kernel)(AttentionLaunch), size_t shared_bytes) {
  constexpr int kMostBlocks = 128;  // the second kernel goes through as many splits
  const LazyAttentionParams& op = launch.op;
  const int64_t wanted = 2 * launcher.num_multiprocessors();  // blocks of a sequence
  launch.most_blocks = static_cast<int>(std::clamp<int64_t>(
      (wanted + op.key.num_kv_heads - 1) / op.key.num_kv_heads, 1, kMostBlocks));
  const Needs needs = find_needs(launch);
  SplitScratch scratch;
  if (needs.splits) scratch = new_scratch(launcher, launch);

  const auto grid = [&](int64_t blocks) {
    return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(op.key.num_kv_heads));
  };
  if (needs.short_sequences) {
    launcher.launch(kernel, grid(op.query.batch * launch.most_blocks), cuda::kAttentionThreads,
                    shared_bytes, launch);
  }
  if (needs.long_sequences) {
    launch.long_sequences = true;
    const int64_t blocks =
        cuda::most_pair_blocks(op.query.rows, launch.group, launch.pairs_per_block, op.query.batch);
    launcher.launch(kernel, grid(blocks), cuda::kAttentionThreads, shared_bytes, launch);
  }
  if (needs.splits) {
    constexpr int kPlaces = cuda::kCombineThreads / cuda::kWarpSize;
    const int64_t places = op.query.rows * op.query.num_heads;
    launcher.launch(cuda::lazy_attention_combine_kernel<T>, cuda::num_blocks(places, kPlaces),
                    cuda::kCombineThreads, 0, launch);
  }
}

/// A split is at least two tiles of keys: shorter ones cost the second kernel more than they gain.
template <typename T, int kDim>
void launch_dim(const Launcher& launcher, AttentionLaunch launch) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr int kKeys = kDim > 128 ? 16 : 32;
    launch.pairs_per_block = cuda::kFmaPairs;
    launch.least_keys = 2 * kKeys;
    launch_kernels<T>(launcher, launch, cuda::lazy_attention_fma_kernel<kDim, kKeys>,
                      cuda::kFmaSharedBytes<kDim, kKeys>);
  } else {
    constexpr int kKeys = kDim > 128 ? 32 : 64;
    launch.pairs_per_block = cuda::kMmaPairs;
    launch.least_keys = 2 * kKeys;
    launch_kernels<T>(launcher, launch, cuda::lazy_attention_mma_kernel<T, kDim, kKeys>,
                      cuda::kMmaSharedBytes<T, kDim, kKeys>);
  }
}

template <typename T>
void launch_type(const Launcher& launcher, AttentionLaunch launch) {
  const LazyAttentionParams& op = launch.op;
  launch.vectorized =
      cuda::in_packs<T>(op.query.head_dim, {op.query.data, op.key.data, op.value},
                        {op.query.row_stride, op.query.head_stride, op.key.slot_stride,
                         op.key.head_stride, op.value_slot_stride, op.value_head_stride});
  if (op.query.head_dim <= 64) {
    launch_dim<T, 64>(launcher, launch);
  } else if (op.query.head_dim <= 96) {
    launch_dim<T, 96>(launcher, launch);
  } else if (op.query.head_dim <= 128) {
    launch_dim<T, 128>(launcher, launch);
  } else {
    launch_dim<T, 256>(launcher, launch);
  }
}

}  // namespace

void lazy_attention_cuda(const LazyAttentionParams& op) {
  cuda::check_head_dim(kOp, op.query.head_dim);
  const Launcher launcher(kOp, op.device);
  const int64_t elements = op.query.rows * op.query.num_heads * op.query.head_dim;
  if (elements == 0) return;
  if (op.query.batch == 0) {
    launcher.fill(op.output, 0, elements * element_bytes(op.query.dtype));
    return;
  }
  AttentionLaunch launch{};
  launch.op = op;
  launch.group = static_cast<int>(op.query.num_heads / op.key.num_kv_heads);
  launch.window = op.window > 0 && op.window < INT32_MAX ? static_cast<int>(op.window) : INT32_MAX;
  cuda::visit_element(op.query.dtype,
                      [&](auto element) { launch_type<decltype(element)>(launcher, launch); });
}

}  // namespace lazyllm
