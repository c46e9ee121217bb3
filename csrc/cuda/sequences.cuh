// Packed sequences on the device. Offsets and indices are the device's own data: the host never
// reads them, so a grid is sized by an upper bound, and every value is clamped before it is used.
#pragma once

#include <cstdint>

#include "numeric.cuh"

namespace lazyllm::cuda {

/// Half-open range of rows, keys or places in a packed list.
struct Range {
  int64_t begin;
  int64_t end;

  __device__ __forceinline__ int64_t size() const { return end - begin; }
};

__device__ __forceinline__ int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

/// Sequence b's part of a packed list, cut to `bounds`. offsets: [B + 1].
__device__ __forceinline__ Range sequence_range(const int64_t* offsets, int64_t b, Range bounds) {
  const int64_t begin = clamp(offsets[b], bounds.begin, bounds.end);
  return {begin, clamp(offsets[b + 1], begin, bounds.end)};
}

__device__ __forceinline__ bool is_used(int64_t slot, int64_t num_slots) {
  return slot >= 0 && slot < num_slots;
}

/// An index as kernels keep it; every negative one, and what no index can be, becomes -1.
__device__ __forceinline__ int narrow_index(int64_t index) {
  return index >= 0 && index < INT32_MAX ? static_cast<int>(index) : -1;
}

/// Stands for the key index of an unused entry: no query can see it.
constexpr int kNoKey = INT32_MAX;

/// Causality and window in one comparison: 0 <= query - key < window. A query of -1 sees nothing.
__device__ __forceinline__ bool is_visible(int key_index, int query_index, int window) {
  return static_cast<unsigned>(query_index) - static_cast<unsigned>(key_index) <
         static_cast<unsigned>(window);
}

/// A block of rows of one sequence. With grouped queries a kernel's rows are *pairs* of a token and
/// one of the `group` query heads that share a key head: pair = token · group + head.
struct PairBlock {
  int64_t sequence;
  Range rows;     // the sequence's rows, in the flat list
  int64_t begin;  // the block's first pair, counted within the sequence
  int64_t count;  // pairs of the block; 0: the sequence has no such block

  __device__ __forceinline__ int64_t row(int64_t pair, int group) const {
    return rows.begin + (begin + pair) / group;
  }
};

/// How many blocks of `block` pairs the rows of all sequences can need, whatever the offsets.
inline int64_t max_pair_blocks(int64_t num_rows, int64_t group, int64_t block, int64_t batch) {
  return num_rows * group / block + batch;
}

/// The block of pairs number `number` in [0, max_pair_blocks). Sequence b's blocks begin at
/// floor(first pair / block) + b: that leaves every sequence at least as many as it needs. Within a
/// sequence the last rows come first, since they see the most keys and so run longest.
__device__ __forceinline__ PairBlock pair_block(const int64_t* offsets, int64_t batch, Range bounds,
                                                int group, int block, int64_t number) {
  const auto first_block = [&](int64_t b) {
    const int64_t rows_before = clamp(offsets[b], bounds.begin, bounds.end) - bounds.begin;
    return rows_before * group / block + b;
  };
  int64_t low = 0;
  int64_t high = batch - 1;
  while (low < high) {  // the last sequence that begins at or before `number`
    const int64_t middle = (low + high + 1) / 2;
    if (first_block(middle) <= number) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  PairBlock result{low, sequence_range(offsets, low, bounds), 0, 0};
  const int64_t pairs = result.rows.size() * group;
  const int64_t blocks = (pairs + block - 1) / block;
  const int64_t local = number - first_block(low);
  if (local < 0 || local >= blocks) return result;
  result.begin = (blocks - 1 - local) * block;
  result.count = pairs - result.begin < block ? pairs - result.begin : block;
  return result;
}

/// \brief Where the sequence's keys cross an index: every used key before the result's begin lies
/// below `index`, and every used key from its end on does not. Run by one whole warp.
///
/// Used keys ascend, but unused ones may lie anywhere between them and say nothing. So the range is
/// closed in from samples, and stays as it is where all samples are unused: it is right, not tight.
///
/// key_slots, key_index: [K]
__device__ __forceinline__ Range narrow_crossing(const int64_t* key_slots, const int64_t* key_index,
                                                 int64_t num_slots, Range keys, int64_t index) {
  constexpr int64_t kTightEnough = 2 * kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  while (keys.size() > kTightEnough) {
    const int64_t span = keys.size() - 1;
    const int64_t sample = keys.begin + span * lane / (kWarpSize - 1);
    const bool used = is_used(key_slots[sample], num_slots);
    const bool below = used && key_index[sample] < index;
    const unsigned lanes_below = __ballot_sync(kFullWarp, below);
    const unsigned lanes_above = __ballot_sync(kFullWarp, used && !below);
    if ((lanes_below | lanes_above) == 0) break;
    Range closer = keys;
    if (lanes_below != 0) {
      closer.begin = keys.begin + span * (kWarpSize - 1 - __clz(lanes_below)) / (kWarpSize - 1) + 1;
    }
    if (lanes_above != 0) {
      closer.end = keys.begin + span * (__ffs(lanes_above) - 1) / (kWarpSize - 1);
    }
    // Only keys out of order can make them cross.
    keys = {closer.begin, closer.end < closer.begin ? closer.begin : closer.end};
  }
  return keys;
}

}  // namespace lazyllm::cuda
