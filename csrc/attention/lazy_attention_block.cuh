// What both attention kernels do alike: which rows and keys a block of threads works on, how keys
// and values come into shared memory, and how a row's result leaves.
#pragma once

#include "../cuda/numeric.cuh"
#include "../cuda/ptx.cuh"
#include "../cuda/sequences.cuh"
#include "lazy_attention.h"

namespace lazyllm::cuda {

constexpr int kAttentionThreads = 128;

/// What the launcher adds to the operator's own parameters.
struct AttentionLaunch {
  LazyAttentionParams op;
  int group;            // query heads that share a key head
  int window;           // INT32_MAX: none
  int pairs_per_block;  // (token, head) pairs
  int least_keys;       // of a split
  int most_blocks;      // that a short sequence is worked on by, for one key head
  bool long_sequences;  // this launch is for those that have more blocks of pairs than that
  bool vectorized;      // every row of query, key and value can be read in packs of 16 bytes
  // Scratch rows, [H, D] and [H], for the results of splits, if there can be any. A sequence's
  // begin at its number times rows_per_sequence or, if that is 0, its first row times most_blocks.
  int64_t rows_per_sequence;
  float* partial;  // a split's unscaled result
  float2* stats;   // its largest logit, in units of log 2, and its sum
};

/// How the work on one sequence is divided. Nothing in it depends on other sequences, but for where
/// its scratch is.
struct SequencePlan {
  Range rows;
  Range keys;
  int64_t blocks;  // of pairs
  int num_splits;  // of the keys, for every block of pairs; 1 in long sequences
  int64_t scratch_row;

  __device__ __forceinline__ int64_t scratch_of(int split, int64_t row) const {
    return scratch_row + split * rows.size() + row - rows.begin;
  }
};

__device__ __forceinline__ SequencePlan plan_sequence(const AttentionLaunch& launch, int64_t b) {
  const LazyAttentionParams& op = launch.op;
  SequencePlan plan;
  plan.rows = sequence_range(op.query.offsets, b, {0, op.query.rows});
  plan.keys = sequence_range(op.key.offsets, b, {0, op.key.count});
  plan.blocks = num_pair_blocks(plan.rows.size(), launch.group, launch.pairs_per_block);
  plan.num_splits =
      launch.partial == nullptr
          ? 1
          : num_key_splits(plan.blocks, plan.keys.size(), launch.least_keys, launch.most_blocks);
  plan.scratch_row = launch.rows_per_sequence > 0 ? b * launch.rows_per_sequence
                                                  : plan.rows.begin * launch.most_blocks;
  return plan;
}

/// The keys of one tile. An unused entry has slot -1 and index kNoKey.
template <int kKeys>
struct TileKeys {
  int64_t slot[kKeys];
  int index[kKeys];
};

/// A block's place in the work, the same for all of its threads.
struct AttentionWork {
  SequencePlan plan;
  PairBlock pairs;
  int kv_head;
  int split;
  int64_t first_key;  // of this block's part of the keys
  int64_t end_key;    // past the last key that any pair can see
  int num_tiles;
};

/// Smallest and largest index of the used queries in [begin, end); {INT32_MAX, -1} if none is.
/// Run by a whole warp. query_index: shared, a block's pairs.
__device__ __forceinline__ int2 index_bounds(const int* query_index, int begin, int end) {
  int lowest = INT32_MAX;
  int highest = -1;
  for (int pair = begin + threadIdx.x % kWarpSize; pair < end; pair += kWarpSize) {
    const int index = query_index[pair];
    if (index >= 0) lowest = min(lowest, index);
    highest = max(highest, index);
  }
  return {__reduce_min_sync(kFullWarp, lowest), __reduce_max_sync(kFullWarp, highest)};
}

/// \brief Finds the block's sequence, pairs and split. False: there is no work for this block.
///
/// Grid x of a launch for long sequences: most_pair_blocks. For short ones: most_blocks for each
/// sequence, which its blocks of pairs and splits share.
__device__ __forceinline__ bool find_pairs(const AttentionLaunch& launch, AttentionWork& work) {
  const LazyAttentionParams& op = launch.op;
  const int block = launch.pairs_per_block;
  int64_t number = blockIdx.x;
  int64_t b;
  if (launch.long_sequences) {
    int64_t low = 0;
    int64_t high = op.query.batch - 1;
    const auto first_block = [&](int64_t sequence) {
      return first_pair_block(clamp(op.query.offsets[sequence], 0, op.query.rows), launch.group,
                              block, sequence);
    };
    while (low < high) {  // the last sequence that begins at or before `number`
      const int64_t middle = (low + high + 1) / 2;
      if (first_block(middle) <= number) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    b = low;
    number -= first_block(b);
  } else {
    b = number / launch.most_blocks;
    number %= launch.most_blocks;
  }
  work.plan = plan_sequence(launch, b);
  const int64_t blocks = work.plan.blocks;
  if ((blocks > launch.most_blocks) != launch.long_sequences || number < 0 ||
      number >= blocks * work.plan.num_splits) {
    return false;
  }
  work.pairs = pair_block(work.plan.rows, launch.group, block, number % blocks);
  work.split = static_cast<int>(number / blocks);
  work.kv_head = blockIdx.y;
  return true;
}

/// \brief Finds the block's part of the keys that its pairs can see. Ends in a barrier.
/// \param query_index shared [kPairs], filled: -1 for unused rows and past the block's last pair
/// \param visible shared, scratch
template <int kPairs, int kKeys>
__device__ __forceinline__ void find_keys(const AttentionLaunch& launch, AttentionWork& work,
                                          int* query_index, int64_t (&visible)[2]) {
  const LazyAttentionParams& op = launch.op;
  for (int pair = threadIdx.x; pair < kPairs; pair += kAttentionThreads) {
    query_index[pair] = pair < work.pairs.count
                            ? narrow_index(op.query.index[work.pairs.row(pair, launch.group)])
                            : -1;
  }
  __syncthreads();

  const int2 bounds = index_bounds(query_index, 0, kPairs);
  Range keys = work.plan.keys;
  if (bounds.y < 0) keys.end = keys.begin;
  const auto crossing = [&](int64_t index) {
    return narrow_crossing(op.key.slots, op.key.index, op.key.num_slots, keys, index);
  };
  if (threadIdx.x / kWarpSize == 0) {
    const int64_t out_of_window = static_cast<int64_t>(bounds.x) - launch.window;
    const int64_t begin = out_of_window < 0 ? keys.begin : crossing(out_of_window + 1).begin;
    if (threadIdx.x == 0) visible[0] = begin;
  } else if (threadIdx.x / kWarpSize == 1) {
    const int64_t end = crossing(static_cast<int64_t>(bounds.y) + 1).end;
    if (threadIdx.x == kWarpSize) visible[1] = end;
  }
  __syncthreads();

  const int64_t num_visible = visible[1] > visible[0] ? visible[1] - visible[0] : 0;
  const int64_t tiles = (num_visible + kKeys - 1) / kKeys;
  const int64_t first_tile = tiles * work.split / work.plan.num_splits;
  const int64_t end_tile = tiles * (work.split + 1) / work.plan.num_splits;
  work.first_key = visible[0] + first_tile * kKeys;
  work.end_key = visible[1];
  work.num_tiles = static_cast<int>(end_tile - first_tile);
}

/// \brief Both of these, into shared memory. False: there is no work for this block.
template <int kPairs, int kKeys>
__device__ __forceinline__ bool find_work(const AttentionLaunch& launch, AttentionWork& shared_work,
                                          int* query_index, int64_t (&visible)[2]) {
  AttentionWork work;
  if (!find_pairs(launch, work)) return false;
  find_keys<kPairs, kKeys>(launch, work, query_index, visible);
  if (threadIdx.x == 0) shared_work = work;
  __syncthreads();
  return true;
}

/// An entry of the key list as it is read, not looked at yet: the loads are still under way.
struct KeyEntry {
  int64_t slot;
  int64_t index;
};

/// Entry `entry` of the block's tile `tile`.
template <int kKeys>
__device__ __forceinline__ KeyEntry read_entry(const LazyAttentionParams& op,
                                               const AttentionWork& work, int tile, int entry) {
  const int64_t key = work.first_key + static_cast<int64_t>(tile) * kKeys + entry;
  if (key >= work.end_key) return {-1, -1};
  return {op.key.slots[key], op.key.index[key]};
}

template <int kKeys>
__device__ __forceinline__ void put_entry(TileKeys<kKeys>& keys, int entry, KeyEntry read,
                                          int64_t num_slots) {
  const int index = narrow_index(read.index);
  const bool used = is_used(read.slot, num_slots) && index >= 0;
  keys.slot[entry] = used ? read.slot : -1;
  keys.index[entry] = used ? index : kNoKey;
}

/// Elements between the rows of a tile in shared memory: an odd number of 16-byte packs, so that
/// eight rows' packs of the same column lie in different banks.
template <typename T, int kDim>
constexpr int kTileStride = kDim + kPack<T>;

/// \brief Starts the copy of kRows rows [dim] into a tile [kRows, kTileStride<T, kDim>].
/// Columns from `dim` to kDim and rows without a source become zeros.
/// \param source_of row number -> pointer to its first element, or nullptr
/// \param aligned any address that is a multiple of 16
template <typename T, int kRows, int kDim, typename SourceOf>
__device__ __forceinline__ void load_tile(T* tile, int dim, bool vectorized, const void* aligned,
                                          SourceOf source_of) {
  if (vectorized) {
    constexpr int kPacks = kDim / kPack<T>;
    static_assert(kRows * kPacks % kAttentionThreads == 0);
#pragma unroll
    for (int step = 0; step < kRows * kPacks / kAttentionThreads; ++step) {
      const int i = step * kAttentionThreads + threadIdx.x;
      const int row = i / kPacks;
      const int column = i % kPacks * kPack<T>;
      const T* source = source_of(row);
      const bool valid = source != nullptr && column < dim;
      copy_async(tile + row * kTileStride<T, kDim> + column, valid ? source + column : aligned,
                 valid);
    }
  } else {
    for (int i = threadIdx.x; i < kRows * kDim; i += kAttentionThreads) {
      const int row = i / kDim;
      const int column = i % kDim;
      const T* source = source_of(row);
      tile[row * kTileStride<T, kDim> + column] =
          source != nullptr && column < dim ? source[column] : from_float<T>(0.0f);
    }
  }
}

/// Keys or values of one tile. store: [num_slots, Hkv, D], already at the block's key head.
template <typename T, int kKeys, int kDim>
__device__ __forceinline__ void load_keys(T* tile, const T* store, int64_t slot_stride,
                                          const TileKeys<kKeys>& keys,
                                          const AttentionLaunch& launch) {
  load_tile<T, kKeys, kDim>(tile, launch.op.query.head_dim, launch.vectorized, store, [&](int key) {
    const int64_t slot = keys.slot[key];
    return slot < 0 ? nullptr : store + slot * slot_stride;
  });
}

/// The queries of the block's pairs.
template <typename T, int kPairs, int kDim>
__device__ __forceinline__ void load_queries(T* tile, const AttentionLaunch& launch,
                                             const AttentionWork& work) {
  const LazyAttentionParams& op = launch.op;
  const T* query = static_cast<const T*>(op.query.data);
  load_tile<T, kPairs, kDim>(tile, op.query.head_dim, launch.vectorized, query, [&](int pair) {
    if (pair >= work.pairs.count) return static_cast<const T*>(nullptr);
    const int64_t head = static_cast<int64_t>(work.kv_head) * launch.group +
                         (work.pairs.begin + pair) % launch.group;
    return query + work.pairs.row(pair, launch.group) * op.query.row_stride +
           head * op.query.head_stride;
  });
}

/// How the pairs of one warp see a tile.
struct TileView {
  bool relevant;  // some pair may see some key
  bool masked;    // some entry is hidden from some pair
  bool mixed;     // some used key is: its value must not reach that pair, not even as 0 · NaN
};

/// \param bounds smallest and largest query index of the warp's used pairs. Run by the whole warp
template <int kKeys>
__device__ __forceinline__ TileView view_tile(const TileKeys<kKeys>& keys, int2 bounds,
                                              int window) {
  bool relevant = false;
  bool masked = false;
  bool mixed = false;
  for (int key = threadIdx.x % kWarpSize; key < kKeys; key += kWarpSize) {
    const int index = keys.index[key];
    const bool seen_by_all = index <= bounds.x && index > bounds.y - window;
    relevant = relevant || (index <= bounds.y && index > bounds.x - window);
    masked = masked || !seen_by_all;
    mixed = mixed || (!seen_by_all && index != kNoKey);
  }
  return {__any_sync(kFullWarp, relevant) != 0, __any_sync(kFullWarp, masked) != 0,
          __any_sync(kFullWarp, mixed) != 0};
}

/// Sums of a split in which a pair saw no key, or saw only logits of -inf. Others are > 0.
constexpr float kSawNothing = 0.0f;
constexpr float kSawOnlyMinusInfinity = -1.0f;

/// What a pair knows after some of its keys: result = values / sum, logits in units of log 2.
struct RowState {
  float maximum = -kInfinity;
  float sum = 0.0f;   // of 2^(logit - maximum)
  bool seen = false;  // any key at all, were its logit -inf
};

/// What exp2f takes logits relative to: the maximum, or 0 as long as there is none.
__device__ __forceinline__ float reference_logit(float maximum) {
  return maximum == -kInfinity ? 0.0f : maximum;
}

/// \brief Where a pair's result goes, and by what it is multiplied on its way.
/// With one split that is the output, with more the split's own scratch.
struct RowResult {
  int64_t offset;  // of the row [D], in the output [R, H, D] or in launch.partial
  float factor;
  bool zero;  // the pair sees nothing: zeros, whatever the sums hold
};

/// \brief Goes through the block's tiles with two loads under way in turn: values load while the
/// logits are computed, the next keys while the values are used.
///
/// queries, keys, values: shared, [kPairs or kKeys, kTileStride<T, kDim>]
/// \param bounds smallest and largest query index of the warp's used pairs
/// \param use_keys called by the warps that see the tile, once its keys are in shared memory
/// \param use_values (key indices, view of the tile), the same once its values are there
template <typename T, int kPairs, int kDim, int kKeys, typename UseKeys, typename UseValues>
__device__ __forceinline__ void run_tiles(const AttentionLaunch& launch, const AttentionWork& work,
                                          int2 bounds, TileKeys<kKeys> (&tile_keys)[2], T* queries,
                                          T* keys, T* values, UseKeys use_keys,
                                          UseValues use_values) {
  const LazyAttentionParams& op = launch.op;
  const T* key_store = static_cast<const T*>(op.key.data) + work.kv_head * op.key.head_stride;
  const T* value_store = static_cast<const T*>(op.value) + work.kv_head * op.value_head_stride;
  if (work.num_tiles == 0) return;

  const bool reads_entry = threadIdx.x < kKeys;
  KeyEntry entry{-1, -1};
  if (reads_entry) {
    entry = read_entry<kKeys>(op, work, 0, threadIdx.x);
    put_entry(tile_keys[0], threadIdx.x, entry, op.key.num_slots);
  }
  __syncthreads();
  load_queries<T, kPairs, kDim>(queries, launch, work);
  load_keys<T, kKeys, kDim>(keys, key_store, op.key.slot_stride, tile_keys[0], launch);
  copy_async_commit();
  for (int t = 0; t < work.num_tiles; ++t) {
    const TileKeys<kKeys>& current = tile_keys[t % 2];
    TileKeys<kKeys>& next = tile_keys[(t + 1) % 2];
    const bool more = t + 1 < work.num_tiles;
    copy_async_wait<0>();
    __syncthreads();  // the keys are here, and nobody needs the last tile's values any more
    load_keys<T, kKeys, kDim>(values, value_store, op.value_slot_stride, current, launch);
    copy_async_commit();
    if (more && reads_entry) entry = read_entry<kKeys>(op, work, t + 1, threadIdx.x);
    const TileView view = view_tile(current, bounds, launch.window);
    if (view.relevant) use_keys();
    if (more && reads_entry) put_entry(next, threadIdx.x, entry, op.key.num_slots);
    copy_async_wait<0>();
    __syncthreads();  // the values are here, and nobody needs the keys any more
    if (more) {
      load_keys<T, kKeys, kDim>(keys, key_store, op.key.slot_stride, next, launch);
      copy_async_commit();
    }
    if (view.relevant) use_values(current.index, view);
  }
}

/// Stores the split's statistics if there are several (`leader`: one thread of a pair does).
__device__ __forceinline__ RowResult finish_pair(const AttentionLaunch& launch,
                                                 const AttentionWork& work, int pair,
                                                 int query_index, RowState state, bool leader) {
  const Queries& query = launch.op.query;
  const int64_t head =
      static_cast<int64_t>(work.kv_head) * launch.group + (work.pairs.begin + pair) % launch.group;
  const int64_t row = work.pairs.row(pair, launch.group);
  const bool seen = state.seen && query_index >= 0;
  if (work.plan.num_splits == 1) {
    // All visible logits -inf: 0 · (1 / 0) is NaN, as it is in a plain softmax.
    return {(row * query.num_heads + head) * query.head_dim, seen ? 1.0f / state.sum : 0.0f, !seen};
  }
  const int64_t place = work.plan.scratch_of(work.split, row) * query.num_heads + head;
  if (leader) {
    const float sum = !seen ? kSawNothing : (state.sum == 0.0f ? kSawOnlyMinusInfinity : state.sum);
    launch.stats[place] = {seen ? state.maximum : -kInfinity, sum};
  }
  return {place * query.head_dim, 1.0f, !seen};
}

/// Stores columns `column` and `column + 1` of a row, those of them that are below `dim`.
template <typename T>
__device__ __forceinline__ void store_pair(T* row, int column, int dim, float first, float second) {
  if (column < dim) row[column] = from_float<T>(first);
  if (column + 1 < dim) row[column + 1] = from_float<T>(second);
}

}  // namespace lazyllm::cuda
