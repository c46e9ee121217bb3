// lazy_attention for bfloat16 and float16: tensor cores, float32 sums.
#pragma once

#include "lazy_attention_block.cuh"

namespace lazyllm::cuda {

constexpr int kMmaPairs = 64;  // 16 of them a warp

/// The part of a warp's work that stays in registers. Row `r` of a thread is pair
/// 16 · warp + lane / 4 + 8 · r; its columns of an 8-column group are 2 · (lane % 4) + {0, 1}.
template <int kDim, int kKeys>
struct MmaTile {
  float logits[kKeys / 8][4];
  float result[kDim / 8][4];
};

/// logits = queries [16, kDim] · keys [kKeys, kDim]^T, not scaled yet.
template <typename T, int kDim, int kKeys>
__device__ __forceinline__ void mma_logits(MmaTile<kDim, kKeys>& tile, const T* queries,
                                           const T* keys) {
  constexpr int kStride = kTileStride<T, kDim>;
  const int lane = threadIdx.x % kWarpSize;
  const T* query_row = queries + lane % 16 * kStride + lane / 16 * 8;
  const T* key_row = keys + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
  for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile.logits[group][i] = 0.0f;
  }
#pragma unroll
  for (int column = 0; column < kDim; column += 16) {
    uint32_t a[4];
    load_matrices(a, query_row + column);
#pragma unroll
    for (int key = 0; key < kKeys; key += 16) {
      uint32_t b[4];
      load_matrices(b, key_row + key * kStride + column);
      multiply_add(tile.logits[key / 8], a, b[0], b[1], T());
      multiply_add(tile.logits[key / 8 + 1], a, b[2], b[3], T());
    }
  }
}

/// result += probabilities [16, kKeys] · values [kKeys, kDim]. The probabilities are in logits.
template <typename T, int kDim, int kKeys>
__device__ __forceinline__ void mma_values(MmaTile<kDim, kKeys>& tile, const T* values) {
  constexpr int kStride = kTileStride<T, kDim>;
  const int lane = threadIdx.x % kWarpSize;
  const T* value_row = values + lane % 16 * kStride + lane / 16 * 8;
#pragma unroll
  for (int key = 0; key < kKeys; key += 16) {
    const float (&low)[4] = tile.logits[key / 8];
    const float (&high)[4] = tile.logits[key / 8 + 1];
    const uint32_t a[4] = {pack_pair(low[0], low[1], T()), pack_pair(low[2], low[3], T()),
                           pack_pair(high[0], high[1], T()), pack_pair(high[2], high[3], T())};
#pragma unroll
    for (int column = 0; column < kDim; column += 16) {
      uint32_t b[4];
      load_matrices_transposed(b, value_row + key * kStride + column);
      multiply_add(tile.result[column / 8], a, b[0], b[1], T());
      multiply_add(tile.result[column / 8 + 1], a, b[2], b[3], T());
    }
  }
}

/// Adding this to an absolute value's bits carries into the sign bit if it is inf or NaN.
template <typename T>
constexpr uint32_t kExponentStep = 0;
template <>
constexpr uint32_t kExponentStep<__half> = 0x04000400u;
template <>
constexpr uint32_t kExponentStep<__nv_bfloat16> = 0x00800080u;

/// Whether any value of the tile is inf or NaN. Run by a whole warp.
template <typename T, int kDim, int kKeys>
__device__ __forceinline__ bool any_not_finite(const T* values) {
  constexpr int kPacks = kDim / kPack<T>;
  uint32_t carries = 0;
  for (int i = threadIdx.x % kWarpSize; i < kKeys * kPacks; i += kWarpSize) {
    const uint4 pack = *reinterpret_cast<const uint4*>(values + i / kPacks * kTileStride<T, kDim> +
                                                       i % kPacks * kPack<T>);
    carries |= (pack.x & 0x7fff7fffu) + kExponentStep<T>;
    carries |= (pack.y & 0x7fff7fffu) + kExponentStep<T>;
    carries |= (pack.z & 0x7fff7fffu) + kExponentStep<T>;
    carries |= (pack.w & 0x7fff7fffu) + kExponentStep<T>;
  }
  return __any_sync(kFullWarp, (carries & 0x80008000u) != 0) != 0;
}

/// \brief mma_values for a tile in which a key hidden from some pair has a value that is not
/// finite: the tensor cores would multiply it by 0 and make NaN of that pair's result.
///
/// Rare, so small instead of fast: loops that are not unrolled, over copies in local memory.
template <typename T, int kDim, int kKeys>
__device__ __forceinline__ void mma_visible_values(MmaTile<kDim, kKeys>& tile, const T* values,
                                                   const int* key_index,
                                                   const int (&query_index)[2], int window) {
  const int lane = threadIdx.x % kWarpSize;
  MmaTile<kDim, kKeys> copy = tile;
#pragma unroll 1
  for (int key = 0; key < kKeys; ++key) {
    const int owner = lane / 4 * 4 + key % 8 / 2;  // the lane that holds this key's probabilities
#pragma unroll 1
    for (int r = 0; r < 2; ++r) {
      const float p = __shfl_sync(kFullWarp, copy.logits[key / 8][2 * r + key % 2], owner);
      if (!is_visible(key_index[key], query_index[r], window)) continue;
#pragma unroll 1
      for (int i = 0; i < kDim / 4; ++i) {
        const int column = i / 2 * 8 + lane % 4 * 2 + i % 2;
        copy.result[i / 2][2 * r + i % 2] +=
            p * to_float(values[key * kTileStride<T, kDim> + column]);
      }
    }
  }
#pragma unroll
  for (int group = 0; group < kDim / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile.result[group][i] = copy.result[group][i];
  }
}

/// \brief One step of the running softmax: turns the tile's logits into probabilities relative to
/// the new maximum, and rescales what was summed before.
template <int kDim, int kKeys>
__device__ __forceinline__ void mma_softmax(MmaTile<kDim, kKeys>& tile, RowState (&state)[2],
                                            const int* key_index, const int (&query_index)[2],
                                            const AttentionLaunch& launch, bool masked) {
  const int lane = threadIdx.x % kWarpSize;
  const float scale = launch.op.scale;
  const float softcap = launch.op.softcap;
  float maximum[2] = {state[0].maximum, state[1].maximum};
#pragma unroll
  for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float logit = cap_logit(tile.logits[group][i] * scale, softcap) * kLog2E;
      const int key = group * 8 + lane % 4 * 2 + i % 2;
      if (masked && !is_visible(key_index[key], query_index[i / 2], launch.window)) {
        logit = -kInfinity;
      } else {
        state[i / 2].seen = true;
      }
      tile.logits[group][i] = logit;
      maximum[i / 2] = fmaxf(maximum[i / 2], logit);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    maximum[r] = fmaxf(maximum[r], __shfl_xor_sync(kFullWarp, maximum[r], 1));
    maximum[r] = fmaxf(maximum[r], __shfl_xor_sync(kFullWarp, maximum[r], 2));
    const float rescale = exp2f(state[r].maximum - reference_logit(maximum[r]));
    state[r].sum *= rescale;
    state[r].maximum = maximum[r];
#pragma unroll
    for (int group = 0; group < kDim / 8; ++group) {
      tile.result[group][2 * r] *= rescale;
      tile.result[group][2 * r + 1] *= rescale;
    }
    const float reference = reference_logit(maximum[r]);
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; ++i) {
        tile.logits[group][i] = exp2f(tile.logits[group][i] - reference);
        state[r].sum += tile.logits[group][i];
      }
    }
  }
}

/// Adds up what the four lanes of a row know, and stores the row's result.
template <typename T, int kDim, int kKeys>
__device__ __forceinline__ void mma_finish(const MmaTile<kDim, kKeys>& tile, RowState (&state)[2],
                                           const int (&query_index)[2],
                                           const AttentionLaunch& launch,
                                           const AttentionWork& work) {
  const int lane = threadIdx.x % kWarpSize;
  const int dim = static_cast<int>(launch.op.query.head_dim);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
      state[r].sum += __shfl_xor_sync(kFullWarp, state[r].sum, distance);
      state[r].seen = __shfl_xor_sync(kFullWarp, state[r].seen, distance) || state[r].seen;
    }
    const int pair = threadIdx.x / kWarpSize * 16 + lane / 4 + 8 * r;
    if (pair >= work.pairs.count) continue;
    const RowResult row = finish_pair(launch, work, pair, query_index[r], state[r], lane % 4 == 0);
    if (work.plan.num_splits > 1 && row.zero) continue;
#pragma unroll
    for (int group = 0; group < kDim / 8; ++group) {
      const int column = group * 8 + lane % 4 * 2;
      const float first = row.zero ? 0.0f : tile.result[group][2 * r] * row.factor;
      const float second = row.zero ? 0.0f : tile.result[group][2 * r + 1] * row.factor;
      if (work.plan.num_splits > 1) {
        store_pair(launch.partial + row.offset, column, dim, first, second);
      } else {
        store_pair(static_cast<T*>(launch.op.output) + row.offset, column, dim, first, second);
      }
    }
  }
}

/// \brief Attention of a block of (token, head) pairs over one split of the keys they can see.
///
/// Grid (see find_pairs, key heads). Keys and values are read once for the query heads
/// that share them.
///
/// query [R, H, D], key and value store [num_slots, Hkv, D]
/// \tparam T __half or __nv_bfloat16
/// \tparam kDim head_dim, rounded up to a size that is compiled; the columns between are zeros
/// \tparam kKeys keys of a tile
template <typename T, int kDim, int kKeys>
__global__ void __launch_bounds__(kAttentionThreads, kDim > 128 ? 2 : 3)
    lazy_attention_mma_kernel(const AttentionLaunch launch) {
  constexpr int kStride = kTileStride<T, kDim>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  T* queries = reinterpret_cast<T*>(shared_bytes);  // [kMmaPairs, kStride]
  T* keys = queries + kMmaPairs * kStride;          // [kKeys, kStride]
  T* values = keys + kKeys * kStride;               // [kKeys, kStride]
  __shared__ TileKeys<kKeys> tile_keys[2];
  __shared__ int query_index[kMmaPairs];
  __shared__ int64_t visible[2];
  __shared__ AttentionWork work;  // not in registers: little of it is needed in the loop

  if (!find_work<kMmaPairs, kKeys>(launch, work, query_index, visible)) return;
  const int first_pair = threadIdx.x / kWarpSize * 16;
  const int own_pair = first_pair + threadIdx.x % kWarpSize / 4;
  const int own_index[2] = {query_index[own_pair], query_index[own_pair + 8]};
  RowState state[2];
  MmaTile<kDim, kKeys> tile;
#pragma unroll
  for (int group = 0; group < kDim / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile.result[group][i] = 0.0f;
  }

  const auto use_keys = [&] { mma_logits(tile, queries + first_pair * kStride, keys); };
  const auto use_values = [&](const int* key_index, TileView view) {
    mma_softmax(tile, state, key_index, own_index, launch, view.masked);
    if (view.mixed && any_not_finite<T, kDim, kKeys>(values)) {
      mma_visible_values(tile, values, key_index, own_index, launch.window);
    } else {
      mma_values(tile, values);
    }
  };
  run_tiles<T, kMmaPairs, kDim>(launch, work,
                                index_bounds(query_index, first_pair, first_pair + 16), tile_keys,
                                queries, keys, values, use_keys, use_values);
  mma_finish<T>(tile, state, own_index, launch, work);
}

/// Dynamic shared memory of the kernel, in bytes.
template <typename T, int kDim, int kKeys>
constexpr size_t kMmaSharedBytes = (kMmaPairs + 2 * kKeys) * kTileStride<T, kDim> * sizeof(T);

}  // namespace lazyllm::cuda
