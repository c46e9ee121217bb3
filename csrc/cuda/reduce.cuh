// Sums over a block of threads, each always taken in the same order.
#pragma once

#include <cstdint>

#include "numeric.cuh"

namespace lazyllm::cuda {

/// Inclusive sum over the lanes of a warp, up to this one.
__device__ __forceinline__ uint32_t warp_scan(uint32_t value) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const uint32_t before = __shfl_up_sync(kFullWarp, value, distance);
    if (lane >= distance) value += before;
  }
  return value;
}

struct Scan {
  uint32_t before;  // sum over the threads before this one
  uint32_t total;   // sum over the whole block
};

/// \brief Sum over the threads of a block before each of them. Holds two barriers; several small
/// counts may be packed into one value as long as their sums do not meet.
/// \param warp_sums shared
template <int kThreads>
__device__ __forceinline__ Scan block_scan(uint32_t value,
                                           uint32_t (&warp_sums)[kThreads / kWarpSize]) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kWarps <= kWarpSize);
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const uint32_t within = warp_scan(value);
  __syncthreads();  // warp_sums may still be read for the scan before
  if (lane == kWarpSize - 1) warp_sums[warp] = within;
  __syncthreads();
  const uint32_t warps = warp_scan(lane < kWarps ? warp_sums[lane] : 0);
  const uint32_t before = __shfl_sync(kFullWarp, warps, warp == 0 ? 0 : warp - 1);
  return {(warp == 0 ? 0 : before) + within - value, __shfl_sync(kFullWarp, warps, kWarpSize - 1)};
}

}  // namespace lazyllm::cuda
