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

/// The last sequence whose part of a packed list begins at or before `place`. offsets: [batch + 1]
__device__ __forceinline__ int64_t sequence_of(const int64_t* offsets, int64_t batch,
                                               int64_t place) {
  int64_t low = 0;
  int64_t high = batch - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (offsets[middle] <= place) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// A block of rows of one sequence. With grouped queries a kernel's rows are *pairs* of a token and
/// one of the `group` query heads that share a key head: pair = token · group + head.
struct PairBlock {
  Range rows;     // the sequence's rows, in the flat list
  int64_t begin;  // the block's first pair, counted within the sequence
  int count;      // pairs of the block

  __device__ __forceinline__ int64_t row(int64_t pair, int group) const {
    return rows.begin + (begin + pair) / group;
  }
};

/// Blocks of `block` pairs that rows of one sequence need.
__host__ __device__ __forceinline__ int64_t num_pair_blocks(int64_t num_rows, int group,
                                                            int block) {
  return (num_rows * group + block - 1) / block;
}

/// Block `number` of a sequence's num_pair_blocks. The last rows come first, since they see the
/// most keys and so run longest.
__device__ __forceinline__ PairBlock pair_block(Range rows, int group, int block, int64_t number) {
  const int64_t begin = (num_pair_blocks(rows.size(), group, block) - 1 - number) * block;
  const int64_t left = rows.size() * group - begin;
  return {rows, begin, static_cast<int>(left < block ? left : block)};
}

/// How many blocks of pairs the rows of all sequences can need, whatever the offsets. Sequence b's
/// begin at first_pair_block, which leaves every sequence at least as many as it needs.
inline int64_t most_pair_blocks(int64_t num_rows, int group, int block, int64_t batch) {
  return num_rows * group / block + batch;
}
__device__ __forceinline__ int64_t first_pair_block(int64_t rows_before, int group, int block,
                                                    int64_t b) {
  return rows_before * group / block + b;
}

/// \brief Into how many parts the keys of one sequence are split, for blocks that work on a part
/// each: as many as give the sequence `most_blocks` blocks, and none shorter than `least_keys`.
///
/// The sequence alone decides: its sums are taken in the same order, and so to the same bits, in
/// whatever batch it is.
__host__ __device__ __forceinline__ int num_key_splits(int64_t pair_blocks, int64_t num_keys,
                                                       int least_keys, int most_blocks) {
  const int64_t by_blocks = most_blocks / (pair_blocks > 1 ? pair_blocks : 1);
  const int64_t by_keys = num_keys / least_keys;
  const int64_t splits = by_blocks < by_keys ? by_blocks : by_keys;
  return splits > 1 ? static_cast<int>(splits) : 1;
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
