// lazy_attention for float32: ordinary multiply-adds, since the tensor cores would round to TF32.
#pragma once

#include "lazy_attention_block.cuh"

namespace lazyllm::cuda {

constexpr int kFmaPairs = 32;   // 8 of them a warp, 2 a thread
constexpr int kFmaColumns = 8;  // neighbouring lanes that share a pair of rows

/// The part of a warp's work that stays in registers. With x = lane % 8 and y = thread / 8, a
/// thread's rows are pairs 2y and 2y + 1, its keys x + 8 · j, its dims 4x + 32 · j + {0, 1, 2, 3}.
template <int kDim, int kKeys>
struct FmaTile {
  float logits[2][kKeys / kFmaColumns];
  float result[2][kDim / kFmaColumns];
};

__device__ __forceinline__ float4 read_four(const float* source) {
  return *reinterpret_cast<const float4*>(source);
}

/// logits = queries [kFmaPairs, kDim] · keys [kKeys, kDim]^T, not scaled yet.
template <int kDim, int kKeys>
__device__ __forceinline__ void fma_logits(FmaTile<kDim, kKeys>& tile, const float* queries,
                                           const float* keys) {
  constexpr int kStride = kTileStride<float, kDim>;
  const int x = threadIdx.x % kFmaColumns;
  const int y = threadIdx.x / kFmaColumns;
#pragma unroll
  for (int j = 0; j < kKeys / kFmaColumns; ++j) tile.logits[0][j] = tile.logits[1][j] = 0.0f;
#pragma unroll 4
  for (int column = 0; column < kDim; column += 4) {
    const float4 first = read_four(queries + 2 * y * kStride + column);
    const float4 second = read_four(queries + (2 * y + 1) * kStride + column);
#pragma unroll
    for (int j = 0; j < kKeys / kFmaColumns; ++j) {
      const float4 key = read_four(keys + (x + kFmaColumns * j) * kStride + column);
      float (&logits)[2][kKeys / kFmaColumns] = tile.logits;
      logits[0][j] = fmaf(first.x, key.x, logits[0][j]);
      logits[0][j] = fmaf(first.y, key.y, logits[0][j]);
      logits[0][j] = fmaf(first.z, key.z, logits[0][j]);
      logits[0][j] = fmaf(first.w, key.w, logits[0][j]);
      logits[1][j] = fmaf(second.x, key.x, logits[1][j]);
      logits[1][j] = fmaf(second.y, key.y, logits[1][j]);
      logits[1][j] = fmaf(second.z, key.z, logits[1][j]);
      logits[1][j] = fmaf(second.w, key.w, logits[1][j]);
    }
  }
}

/// One step of the running softmax. The probabilities go to shared memory [kFmaPairs, kKeys + 4],
/// where the lanes of a row read each other's. A hidden key's is `hidden`.
template <int kDim, int kKeys>
__device__ __forceinline__ void fma_softmax(FmaTile<kDim, kKeys>& tile, RowState (&state)[2],
                                            float* probabilities, const int* key_index,
                                            const int (&query_index)[2],
                                            const AttentionLaunch& launch, bool masked,
                                            float hidden) {
  const int x = threadIdx.x % kFmaColumns;
  const int y = threadIdx.x / kFmaColumns;
  const float scale = launch.op.scale;
  const float softcap = launch.op.softcap;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float maximum = state[r].maximum;
    bool seen[kKeys / kFmaColumns];
#pragma unroll
    for (int j = 0; j < kKeys / kFmaColumns; ++j) {
      const float logit = cap_logit(tile.logits[r][j] * scale, softcap) * kLog2E;
      seen[j] =
          !masked || is_visible(key_index[x + kFmaColumns * j], query_index[r], launch.window);
      tile.logits[r][j] = seen[j] ? logit : -kInfinity;
      state[r].seen = state[r].seen || seen[j];
      maximum = fmaxf(maximum, tile.logits[r][j]);
    }
#pragma unroll
    for (int distance = 1; distance < kFmaColumns; distance *= 2) {
      maximum = fmaxf(maximum, __shfl_xor_sync(kFullWarp, maximum, distance));
    }
    const float reference = reference_logit(maximum);
    const float rescale = exp2f(state[r].maximum - reference);
    state[r].maximum = maximum;
    state[r].sum *= rescale;
#pragma unroll
    for (int i = 0; i < kDim / kFmaColumns; ++i) tile.result[r][i] *= rescale;
#pragma unroll
    for (int j = 0; j < kKeys / kFmaColumns; ++j) {
      const float p = exp2f(tile.logits[r][j] - reference);
      state[r].sum += p;
      probabilities[(2 * y + r) * (kKeys + 4) + x + kFmaColumns * j] = seen[j] ? p : hidden;
    }
  }
}

/// result += probabilities · values [kKeys, kDim].
/// \tparam kMixed negative probabilities mark keys whose values must not be touched
template <bool kMixed, int kDim, int kKeys>
__device__ __forceinline__ void fma_values(FmaTile<kDim, kKeys>& tile, const float* probabilities,
                                           const float* values) {
  constexpr int kStride = kTileStride<float, kDim>;
  const int x = threadIdx.x % kFmaColumns;
  const int y = threadIdx.x / kFmaColumns;
#pragma unroll 1
  for (int key = 0; key < kKeys; key += 4) {
    float p[2][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float4 four = read_four(probabilities + (2 * y + r) * (kKeys + 4) + key);
      p[r][0] = four.x;
      p[r][1] = four.y;
      p[r][2] = four.z;
      p[r][3] = four.w;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        const float4 value = read_four(values + (key + k) * kStride + 4 * x + 32 * j);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (kMixed && p[r][k] < 0.0f) continue;
          float* result = tile.result[r] + 4 * j;
          result[0] = fmaf(p[r][k], value.x, result[0]);
          result[1] = fmaf(p[r][k], value.y, result[1]);
          result[2] = fmaf(p[r][k], value.z, result[2]);
          result[3] = fmaf(p[r][k], value.w, result[3]);
        }
      }
    }
  }
}

/// Adds up what the eight lanes of a row know, and stores the row's result.
template <int kDim, int kKeys>
__device__ __forceinline__ void fma_finish(const FmaTile<kDim, kKeys>& tile, RowState (&state)[2],
                                           const int (&query_index)[2],
                                           const AttentionLaunch& launch,
                                           const AttentionWork& work) {
  const int x = threadIdx.x % kFmaColumns;
  float* out = work.plan.num_splits > 1 ? launch.partial : static_cast<float*>(launch.op.output);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int distance = 1; distance < kFmaColumns; distance *= 2) {
      state[r].sum += __shfl_xor_sync(kFullWarp, state[r].sum, distance);
      state[r].seen = __shfl_xor_sync(kFullWarp, state[r].seen, distance) || state[r].seen;
    }
    const int pair = threadIdx.x / kFmaColumns * 2 + r;
    if (pair >= work.pairs.count) continue;
    const RowResult row = finish_pair(launch, work, pair, query_index[r], state[r], x == 0);
    if (work.plan.num_splits > 1 && row.zero) continue;
#pragma unroll
    for (int i = 0; i < kDim / kFmaColumns; i += 2) {
      const int column = 4 * x + i / 4 * 32 + i % 4;
      store_pair(out + row.offset, column, static_cast<int>(launch.op.query.head_dim),
                 row.zero ? 0.0f : tile.result[r][i] * row.factor,
                 row.zero ? 0.0f : tile.result[r][i + 1] * row.factor);
    }
  }
}

/// \brief Attention of a block of (token, head) pairs over one split of the keys they can see.
///
/// Grid (see find_pairs, key heads). Keys and values are read once for the query heads
/// that share them.
///
/// query [R, H, D], key and value store [num_slots, Hkv, D]
/// \tparam kDim head_dim, rounded up to a size that is compiled; the columns between are zeros
/// \tparam kKeys keys of a tile
template <int kDim, int kKeys>
__global__ void __launch_bounds__(kAttentionThreads, kDim > 128 ? 2 : 3)
    lazy_attention_fma_kernel(const AttentionLaunch launch) {
  constexpr int kStride = kTileStride<float, kDim>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  float* queries = reinterpret_cast<float*>(shared_bytes);  // [kFmaPairs, kStride]
  float* keys = queries + kFmaPairs * kStride;              // [kKeys, kStride]
  float* values = keys + kKeys * kStride;                   // [kKeys, kStride]
  float* probabilities = values + kKeys * kStride;          // [kFmaPairs, kKeys + 4]
  __shared__ TileKeys<kKeys> tile_keys[2];
  __shared__ int query_index[kFmaPairs];
  __shared__ int64_t visible[2];
  __shared__ AttentionWork work;  // not in registers: little of it is needed in the loop

  if (!find_work<kFmaPairs, kKeys>(launch, work, query_index, visible)) return;
  const int first_pair = threadIdx.x / kWarpSize * 8;
  const int own_pair = threadIdx.x / kFmaColumns * 2;
  const int own_index[2] = {query_index[own_pair], query_index[own_pair + 1]};
  RowState state[2];
  FmaTile<kDim, kKeys> tile;
#pragma unroll
  for (int i = 0; i < kDim / kFmaColumns; ++i) tile.result[0][i] = tile.result[1][i] = 0.0f;

  const auto use_keys = [&] { fma_logits(tile, queries, keys); };
  const auto use_values = [&](const int* key_index, TileView view) {
    __syncwarp();  // the lanes have read the last tile's probabilities
    fma_softmax(tile, state, probabilities, key_index, own_index, launch, view.masked,
                view.mixed ? -1.0f : 0.0f);
    __syncwarp();
    if (view.mixed) {
      fma_values<true>(tile, probabilities, values);
    } else {
      fma_values<false>(tile, probabilities, values);
    }
  };
  run_tiles<float, kFmaPairs, kDim>(launch, work,
                                    index_bounds(query_index, first_pair, first_pair + 8),
                                    tile_keys, queries, keys, values, use_keys, use_values);
  fma_finish(tile, state, own_index, launch, work);
}

/// Dynamic shared memory of the kernel, in bytes.
template <int kDim, int kKeys>
constexpr size_t kFmaSharedBytes =
    ((kFmaPairs + 2 * kKeys) * kTileStride<float, kDim> + kFmaPairs * (kKeys + 4)) * sizeof(float);

}  // namespace lazyllm::cuda
