// token_importance, first kernel: the logits, and what each split of the keys knows of its softmax.
#pragma once

#include "../cuda/numeric.cuh"
#include "../cuda/ptx.cuh"
#include "../cuda/sequences.cuh"
#include "token_importance.h"

namespace lazyllm::cuda {

constexpr int kLogitThreads = 128;
constexpr int kLogitWarps = kLogitThreads / kWarpSize;

/// What the launcher adds to the operator's own parameters. The rows are worked on in chunks, so
/// that the logits of a chunk fit their scratch.
struct ImportanceLaunch {
  TokenImportanceParams op;
  int64_t first_row;  // of the chunk
  int64_t end_row;
  int group;        // query heads that share a key head
  int most_blocks;  // that one sequence is worked on by, for one key head
  bool vectorized;  // every row of query and key can be read in packs of 16 bytes
  float* logits;    // [rows of the chunk, H, K], written where the row sees the key
  float2* stats;    // [splits, rows of the chunk, H], see SoftmaxPart
  float2* norms;    // [rows of the chunk, H]: maximum, 1 / sum; 0 or kNoQuery if there is no sum

  __device__ __forceinline__ int64_t place(int64_t row, int64_t head) const {
    return (row - first_row) * op.query.num_heads + head;
  }
  __device__ __forceinline__ int64_t num_places() const {
    return (end_row - first_row) * op.query.num_heads;
  }
};

/// How the work on one sequence's rows of the chunk is divided. Nothing depends on other sequences.
struct ImportancePlan {
  Range rows;
  Range keys;
  int num_splits;  // of the keys
};

/// Pairs of a block as far as splitting is concerned, and so for the order of sums: it must not
/// depend on the pairs that a block really has, which are chosen for the batch as a whole.
constexpr int kPairsPerSplit = 16;
/// A split has at least a tile of 32 keys for every warp.
constexpr int kLeastKeys = kLogitThreads;

__device__ __forceinline__ ImportancePlan plan_sequence(const ImportanceLaunch& launch, int64_t b) {
  const TokenImportanceParams& op = launch.op;
  ImportancePlan plan;
  plan.rows = sequence_range(op.query.offsets, b, {launch.first_row, launch.end_row});
  plan.keys = sequence_range(op.key.offsets, b, {0, op.key.count});
  plan.num_splits = num_key_splits(num_pair_blocks(plan.rows.size(), launch.group, kPairsPerSplit),
                                   plan.keys.size(), kLeastKeys, launch.most_blocks);
  return plan;
}

/// Marks, as a sum or as a norm, a query head that holds a NaN.
constexpr float kNoQuery = -1.0f;

/// A softmax over some of the keys: largest logit, and the sum of e^(logit - maximum).
struct SoftmaxPart {
  float maximum = -kInfinity;
  float sum = 0.0f;

  /// A finite logit.
  __device__ __forceinline__ void add(float logit) {
    if (logit <= maximum) {
      sum += expf(logit - maximum);
    } else {
      sum = sum * expf(maximum - logit) + 1.0f;
      maximum = logit;
    }
  }

  __device__ __forceinline__ void add(float2 other) {
    if (other.y <= 0.0f) return;
    const float larger = fmaxf(maximum, other.x);
    sum = sum * expf(maximum - larger) + other.y * expf(other.x - larger);
    maximum = larger;
  }
};

/// A logit that takes part in the softmax or is 0 in it; others make their key's result NaN.
__device__ __forceinline__ bool is_sound(float logit) { return logit < kInfinity; }

/// Keys come through shared memory in pieces of 128 bytes of each of a warp's 32 keys.
template <typename T>
constexpr int kPieceDims = 128 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kPieceStride = kPieceDims<T> + kPack<T>;  // an odd number of packs: no bank conflict
template <typename T>
constexpr int kPieceElements = kWarpSize * kPieceStride<T>;

/// One key of a warp's tile, a lane each. Slot -1: nothing reads it.
struct LaneKey {
  int64_t key;  // in the flat list
  int64_t slot;
  int index;
};

/// Keys no row of the block can see count as unused.
__device__ __forceinline__ LaneKey read_lane_key(const Keys& keys, Range range, int64_t tile,
                                                 int highest_query) {
  const int64_t key = range.begin + tile * kWarpSize + threadIdx.x % kWarpSize;
  if (key >= range.end) return {key, -1, kNoKey};
  const int64_t slot = keys.slots[key];
  const int index = narrow_index(keys.index[key]);
  const bool used = is_used(slot, keys.num_slots) && index >= 0 && index <= highest_query;
  return {key, used ? slot : -1, used ? index : kNoKey};
}

/// Starts the copy of dims [first, first + kPieceDims) of the warp's keys; zeros past head_dim and
/// for unused keys. store: [num_slots, Hkv, D], already at the block's key head.
template <typename T>
__device__ __forceinline__ void load_piece(T* piece, const T* store, const ImportanceLaunch& launch,
                                           int64_t lane_slot, int first) {
  const int lane = threadIdx.x % kWarpSize;
  const int dim = static_cast<int>(launch.op.query.head_dim);
  if (launch.vectorized) {
    constexpr int kPacks = kPieceDims<T> / kPack<T>;  // 8: four keys a step
#pragma unroll
    for (int step = 0; step < kPacks; ++step) {
      const int key = step * (kWarpSize / kPacks) + lane / kPacks;
      const int column = lane % kPacks * kPack<T>;
      const int64_t slot = __shfl_sync(kFullWarp, lane_slot, key);
      const bool valid = slot >= 0 && first + column < dim;
      const T* source = store + slot * launch.op.key.slot_stride + first + column;
      copy_async(piece + key * kPieceStride<T> + column, valid ? source : store, valid);
    }
  } else {
    for (int key = 0; key < kWarpSize; ++key) {
      const int64_t slot = __shfl_sync(kFullWarp, lane_slot, key);
      const T* source = store + slot * launch.op.key.slot_stride + first;
      for (int column = lane; column < kPieceDims<T>; column += kWarpSize) {
        const bool valid = slot >= 0 && first + column < dim;
        piece[key * kPieceStride<T> + column] = valid ? source[column] : from_float<T>(0.0f);
      }
    }
  }
}

/// products[pair] += query[pair] · key over the dims of one piece, for the lane's key.
/// queries: shared float32 [kPairs, padded dim], from the piece's first dim on
template <typename T, int kPairs>
__device__ __forceinline__ void add_products(float (&products)[kPairs], const T* lane_piece,
                                             const float* queries, int padded_dim, int dims,
                                             int num_pairs) {
  for (int column = 0; column < dims; column += kPack<T>) {
    float key[kPack<T>];
    widen_pack(lane_piece + column, key);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair >= num_pairs) break;
#pragma unroll
      for (int i = 0; i < kPack<T>; i += 4) {
        const float4 query =
            *reinterpret_cast<const float4*>(queries + pair * padded_dim + column + i);
        products[pair] = fmaf(query.x, key[i], products[pair]);
        products[pair] = fmaf(query.y, key[i + 1], products[pair]);
        products[pair] = fmaf(query.z, key[i + 2], products[pair]);
        products[pair] = fmaf(query.w, key[i + 3], products[pair]);
      }
    }
  }
}

/// The block's pairs as all of its threads see them, in shared memory.
template <int kPairs>
struct PairShared {
  int query_index[kPairs];  // -1: unused
  int holds_nan[kPairs];
  int64_t place[kPairs];  // in [rows of the chunk, H]
  float2 parts[kLogitWarps][kPairs];
};

/// Fills `shared` and the queries [kPairs, padded_dim], zeros past head_dim. Ends in a barrier.
template <typename T, int kPairs>
__device__ __forceinline__ void read_pairs(const ImportanceLaunch& launch, const PairBlock& pairs,
                                           PairShared<kPairs>& shared, float* queries,
                                           int padded_dim) {
  const Queries& query = launch.op.query;
  const int num_pairs = pairs.count;
  const auto head_of = [&](int pair) {
    return static_cast<int64_t>(blockIdx.y) * launch.group + (pairs.begin + pair) % launch.group;
  };
  for (int pair = threadIdx.x; pair < kPairs; pair += kLogitThreads) {
    const int64_t row = pairs.row(pair, launch.group);
    shared.query_index[pair] = pair < num_pairs ? narrow_index(query.index[row]) : -1;
    shared.place[pair] = launch.place(row, head_of(pair));
    shared.holds_nan[pair] = 0;
  }
  __syncthreads();
  for (int pair = 0; pair < num_pairs; ++pair) {
    const T* source = static_cast<const T*>(query.data) +
                      pairs.row(pair, launch.group) * query.row_stride +
                      head_of(pair) * query.head_stride;
    for (int column = threadIdx.x; column < padded_dim; column += kLogitThreads) {
      const float value = column < query.head_dim ? to_float(source[column]) : 0.0f;
      if (isnan(value)) shared.holds_nan[pair] = 1;
      queries[pair * padded_dim + column] = value;
    }
  }
  __syncthreads();
}

/// Stores the logits of the lane's key and adds the sound ones to the pairs' softmax.
template <int kPairs>
__device__ __forceinline__ void take_logits(const ImportanceLaunch& launch,
                                            const PairShared<kPairs>& shared,
                                            const float (&products)[kPairs], const LaneKey& lane,
                                            SoftmaxPart (&parts)[kPairs], int num_pairs) {
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    if (pair >= num_pairs) break;
    if (lane.index > shared.query_index[pair]) continue;
    const float logit = cap_logit(products[pair] * launch.op.scale, launch.op.softcap);
    launch.logits[shared.place[pair] * launch.op.key.count + lane.key] = logit;
    if (is_sound(logit) && logit > -kInfinity) parts[pair].add(logit);
  }
}

/// Adds up the parts of all lanes and warps, in a fixed order, and stores the block's.
template <int kPairs>
__device__ __forceinline__ void finish_parts(const ImportanceLaunch& launch,
                                             PairShared<kPairs>& shared,
                                             SoftmaxPart (&parts)[kPairs], int num_pairs,
                                             int split) {
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    if (pair >= num_pairs) break;
    SoftmaxPart& part = parts[pair];
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      const float2 other{__shfl_down_sync(kFullWarp, part.maximum, distance),
                         __shfl_down_sync(kFullWarp, part.sum, distance)};
      part.add(other);
    }
    if (threadIdx.x % kWarpSize == 0) {
      shared.parts[threadIdx.x / kWarpSize][pair] = {part.maximum, part.sum};
    }
  }
  __syncthreads();
  for (int pair = threadIdx.x; pair < num_pairs; pair += kLogitThreads) {
    SoftmaxPart sum;
    for (int warp = 0; warp < kLogitWarps; ++warp) sum.add(shared.parts[warp][pair]);
    const bool skipped = shared.holds_nan[pair] != 0 || shared.query_index[pair] < 0;
    launch.stats[split * launch.num_places() + shared.place[pair]] = {sum.maximum,
                                                                      skipped ? kNoQuery : sum.sum};
  }
}

/// \brief Goes through the block's part of the keys: logits, and the pairs' softmax over them.
///
/// Every warp takes tiles of 32 keys of its own, a lane a key, through its own two buffers: the
/// next piece of 128 bytes a key is under way while this one is multiplied, and warps do not wait
/// for each other.
/// \param tiles of 32 keys, counted from keys.begin
/// \param queries shared [kPairs, padded_dim]
/// \param pieces shared, the warp's own [2, 32, kPieceStride]
template <typename T, int kPairs>
__device__ __forceinline__ void run_tiles(const ImportanceLaunch& launch, Range keys, Range tiles,
                                          const PairShared<kPairs>& shared, const float* queries,
                                          int padded_dim, T* pieces, int num_pairs,
                                          SoftmaxPart (&parts)[kPairs]) {
  const Keys& key = launch.op.key;
  const T* store = static_cast<const T*>(key.data) + blockIdx.y * key.head_stride;
  const int num_pieces = (padded_dim + kPieceDims<T> - 1) / kPieceDims<T>;
  int highest = -1;
  for (int pair = 0; pair < num_pairs; ++pair) highest = max(highest, shared.query_index[pair]);

  int64_t tile = tiles.begin + threadIdx.x / kWarpSize;
  LaneKey current{0, -1, kNoKey};
  if (tile < tiles.end) {
    current = read_lane_key(key, keys, tile, highest);
    load_piece(pieces, store, launch, current.slot, 0);
  }
  copy_async_commit();
  int buffer = 0;
  for (; tile < tiles.end; tile += kLogitWarps) {
    LaneKey next{0, -1, kNoKey};
    const bool more = tile + kLogitWarps < tiles.end;
    if (more) next = read_lane_key(key, keys, tile + kLogitWarps, highest);
    float products[kPairs];
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) products[pair] = 0.0f;
    for (int piece = 0; piece < num_pieces; ++piece) {
      T* other = pieces + (1 - buffer) * kPieceElements<T>;
      if (piece + 1 < num_pieces) {
        load_piece(other, store, launch, current.slot, (piece + 1) * kPieceDims<T>);
      } else if (more) {
        load_piece(other, store, launch, next.slot, 0);
      }
      copy_async_commit();
      copy_async_wait<1>();
      __syncwarp();  // this piece is here, for every lane
      const int first = piece * kPieceDims<T>;
      const T* lane_piece =
          pieces + buffer * kPieceElements<T> + threadIdx.x % kWarpSize * kPieceStride<T>;
      add_products(products, lane_piece, queries + first, padded_dim,
                   min(kPieceDims<T>, padded_dim - first), num_pairs);
      __syncwarp();  // before it is overwritten
      buffer = 1 - buffer;
    }
    take_logits(launch, shared, products, current, parts, num_pairs);
    current = next;
  }
  copy_async_wait<0>();
}

/// \brief Logits of blocks of (token, head) pairs over splits of their sequence's keys.
///
/// Grid (batch · most_blocks, key heads): the blocks of a sequence take its blocks of pairs and
/// splits in turn. All pairs of a block share one read of a key.
///
/// query [R, H, D], key store [num_slots, Hkv, D] -> launch.logits, launch.stats
/// \tparam T of the queries and keys
/// \tparam kPairs pairs of a block
// Three blocks a multiprocessor where four would leave too few registers for 16 pairs.
template <typename T, int kPairs>
__global__ void __launch_bounds__(kLogitThreads, kPairs == 16 ? 3 : 4)
    token_importance_logits_kernel(const ImportanceLaunch launch, int padded_dim) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  float* queries = reinterpret_cast<float*>(shared_bytes);  // [kPairs, padded_dim]
  T* pieces = reinterpret_cast<T*>(queries + kPairs * padded_dim) +
              threadIdx.x / kWarpSize * 2 * kPieceElements<T>;
  __shared__ PairShared<kPairs> shared;

  const ImportancePlan plan = plan_sequence(launch, blockIdx.x / launch.most_blocks);
  const int64_t blocks = num_pair_blocks(plan.rows.size(), launch.group, kPairs);
  const int64_t tiles = (plan.keys.size() + kWarpSize - 1) / kWarpSize;
  for (int64_t item = blockIdx.x % launch.most_blocks; item < blocks * plan.num_splits;
       item += launch.most_blocks) {
    const PairBlock pairs = pair_block(plan.rows, launch.group, kPairs, item % blocks);
    const int split = static_cast<int>(item / blocks);
    const Range part{tiles * split / plan.num_splits, tiles * (split + 1) / plan.num_splits};
    SoftmaxPart parts[kPairs];
    __syncthreads();  // the item before has been finished
    read_pairs<T>(launch, pairs, shared, queries, padded_dim);
    run_tiles(launch, plan.keys, part, shared, queries, padded_dim, pieces, pairs.count, parts);
    finish_parts(launch, shared, parts, pairs.count, split);
  }
}

/// Dynamic shared memory of the kernel, in bytes.
template <typename T, int kPairs>
size_t logits_shared_bytes(int padded_dim) {
  return kPairs * padded_dim * sizeof(float) + kLogitWarps * 2 * kPieceElements<T> * sizeof(T);
}

}  // namespace lazyllm::cuda
