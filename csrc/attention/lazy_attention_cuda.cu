// lazy_attention on CUDA: one kernel for few rows and for many. Its blocks take the (token, head)
// pairs of one key head, so grouped query heads read keys and values once. Where the rows alone make
// too few blocks to fill the device, as in decoding, the keys are split over blocks too and a second
// kernel adds the splits up. Nothing is read back, so all of it can be captured in a CUDA graph.

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../cuda/launch.cuh"
#include "../cuda/tensors.cuh"
#include "lazy_attention_combine.cuh"
#include "lazy_attention_fma.cuh"
#include "lazy_attention_mma.cuh"

namespace lazyllm {
namespace {

constexpr char kOp[] = "lazy_attention";

using cuda::AttentionLaunch;
using cuda::Launcher;

/// Parts of the keys, so that there are about two blocks for each multiprocessor. A part is at least
/// two tiles of the average sequence: shorter ones cost more in the second kernel than they gain.
int choose_splits(const LazyAttentionParams& op, const Launcher& launcher, int64_t pair_blocks,
                  int keys_per_tile) {
  constexpr int64_t kMostSplits = 128;
  const int64_t blocks = pair_blocks * op.key.num_kv_heads;
  const int64_t wanted = (2 * launcher.num_multiprocessors() + blocks - 1) / blocks;
  const int64_t mean_keys = (op.key.count + op.query.batch - 1) / op.query.batch;
  const int64_t possible = mean_keys / (2 * keys_per_tile);
  return static_cast<int>(std::clamp<int64_t>(std::min(wanted, possible), 1, kMostSplits));
}

/// Attention, and the second kernel where the keys are split.
template <typename T>
void launch_kernels(const Launcher& launcher, AttentionLaunch launch, const Tensor& query,
                    void (*kernel)(AttentionLaunch), size_t shared_bytes, int pairs_per_block,
                    int keys_per_tile) {
  const LazyAttentionParams& op = launch.op;
  const int64_t pair_blocks =
      cuda::max_pair_blocks(op.query.rows, launch.group, pairs_per_block, op.query.batch);
  launch.num_splits = choose_splits(op, launcher, pair_blocks, keys_per_tile);
  const int64_t places = op.query.rows * op.query.num_heads;
  Tensor partial;
  Tensor stats;
  if (launch.num_splits > 1) {
    partial = cuda::new_words(query, launch.num_splits * places * op.query.head_dim);
    stats = cuda::new_words(query, launch.num_splits * places * 2);
    launch.partial = static_cast<float*>(partial.mutable_data_ptr());
    launch.stats = static_cast<float2*>(stats.mutable_data_ptr());
  }
  const dim3 grid(static_cast<unsigned>(pair_blocks), static_cast<unsigned>(op.key.num_kv_heads),
                  static_cast<unsigned>(launch.num_splits));
  launcher.launch(kernel, grid, cuda::kAttentionThreads, shared_bytes, launch);
  if (launch.num_splits > 1) {
    constexpr int kPlaces = cuda::kCombineThreads / cuda::kWarpSize;
    launcher.launch(cuda::lazy_attention_combine_kernel<T>,
                    static_cast<unsigned>((places + kPlaces - 1) / kPlaces), cuda::kCombineThreads,
                    0, launch);
  }
}

template <typename T, int kDim>
void launch_dim(const Launcher& launcher, const AttentionLaunch& launch, const Tensor& query) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr int kKeys = kDim > 128 ? 16 : 32;
    launch_kernels<T>(launcher, launch, query, cuda::lazy_attention_fma_kernel<kDim, kKeys>,
                      cuda::kFmaSharedBytes<kDim, kKeys>, cuda::kFmaPairs, kKeys);
  } else {
    constexpr int kKeys = kDim > 128 ? 32 : 64;
    launch_kernels<T>(launcher, launch, query, cuda::lazy_attention_mma_kernel<T, kDim, kKeys>,
                      cuda::kMmaSharedBytes<T, kDim, kKeys>, cuda::kMmaPairs, kKeys);
  }
}

template <typename T>
void launch_type(const Launcher& launcher, AttentionLaunch launch, const Tensor& query) {
  const LazyAttentionParams& op = launch.op;
  launch.vectorized =
      cuda::in_packs<T>(op.query.head_dim, {op.query.data, op.key.data, op.value},
                        {op.query.row_stride, op.query.head_stride, op.key.slot_stride,
                         op.key.head_stride, op.value_slot_stride, op.value_head_stride});
  if (op.query.head_dim <= 64) {
    launch_dim<T, 64>(launcher, launch, query);
  } else if (op.query.head_dim <= 96) {
    launch_dim<T, 96>(launcher, launch, query);
  } else if (op.query.head_dim <= 128) {
    launch_dim<T, 128>(launcher, launch, query);
  } else {
    launch_dim<T, 256>(launcher, launch, query);
  }
}

}  // namespace

Tensor lazy_attention_cuda(const Tensor& query, const Tensor& query_index,
                           const Tensor& query_offsets, const Tensor& key_store,
                           const Tensor& value_store, const Tensor& key_slots,
                           const Tensor& key_index, const Tensor& key_offsets, double scale,
                           int64_t window, double softcap) {
  const Checks check(kOp, query);
  LazyAttentionParams op =
      check_lazy_attention(check, query, query_index, query_offsets, key_store, value_store,
                           key_slots, key_index, key_offsets, scale, window, softcap);
  cuda::check_head_dim(check, op.query.head_dim);
  const Launcher launcher(kOp, query.get_device_index());
  Tensor output = torch::stable::new_empty(
      query, {op.query.rows, op.query.num_heads, op.query.head_dim}, op.query.dtype);
  op.output = output.mutable_data_ptr();
  if (output.numel() == 0) return output;
  if (op.query.batch == 0) return torch::stable::zero_(output);

  AttentionLaunch launch{};
  launch.op = op;
  launch.group = static_cast<int>(op.query.num_heads / op.key.num_kv_heads);
  launch.window = op.window > 0 && op.window < INT32_MAX ? static_cast<int>(op.window) : INT32_MAX;
  visit_float(op.query.dtype, [&](auto type) {
    launch_type<cuda::DeviceType<typename decltype(type)::type>>(launcher, launch, query);
  });
  return output;
}

}  // namespace lazyllm
