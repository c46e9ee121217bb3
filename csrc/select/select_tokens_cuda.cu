// select_tokens on CUDA: one block a sequence ranks its candidates, finds the last rank that is
// selected by an exact radix select, and writes the selection in ascending order.

#include "../cuda/launch.cuh"
#include "../cuda/reduce.cuh"
#include "../cuda/sequences.cuh"
#include "select_tokens.h"

namespace lazyllm {
namespace cuda {
namespace {

constexpr int kSelectThreads = 1024;
constexpr int kSelectWarps = kSelectThreads / kWarpSize;
// A rank has 33 bits, protection above the ordered score: three digits.
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kTopShift = 2 * kDigitBits;
constexpr int kPlacesPerThread = 4;

struct SelectLaunch {
  SelectTokensParams op;
  uint32_t* scores;  // [num_candidates], scratch: ordered pooled score, kUnusedScore if unused
};

constexpr uint32_t kUnusedScore = 0;  // below the ordered score of -inf
constexpr uint32_t kMinusInfinityScore = 0x007fffffu;

/// Where sequence b's data lies, and what its candidates are like.
struct Selection {
  const float* importance;    // [length]
  const int64_t* candidates;  // [count]
  uint32_t* scores;           // [count]
  int64_t length;
  int count;
  // Candidates ascend, so the protected ones are those before `prefix` and those from `suffix` on.
  int prefix;
  int suffix;
};

/// Counts of one sequence, and what the threads of its block tell each other.
struct SelectShared {
  int histogram[kDigits];
  uint32_t warp_sums[kSelectWarps];
  int prefix;
  int suffix;
  int used;
  int num_protected;
  int hopeless;  // not protected and -inf
  int digit;
  int needed;
};

/// An unsigned number that orders as the float does. NaN does not come here.
__device__ __forceinline__ uint32_t ordered_score(float score) {
  const uint32_t bits = __float_as_uint(score);
  if (bits << 1 == 0) return 0x80000000u;  // -0.0 ties with 0.0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// Largest score within pool / 2 of the token; NaN counts as -inf.
__device__ __forceinline__ float pooled_score(const Selection& mine, int64_t token, int64_t half) {
  const int64_t first = token > half ? token - half : 0;
  const int64_t last = half < mine.length - 1 - token ? token + half : mine.length - 1;
  float best = -kInfinity;
  for (int64_t t = first; t <= last; ++t) {
    const float score = __ldg(mine.importance + t);
    if (score > best) best = score;
  }
  return best;
}

/// Rank of the candidate at a place; of two ranks the higher is selected first. An unused place's
/// is the score's kUnusedScore, which nobody asks for.
__device__ __forceinline__ uint64_t rank_of(const Selection& mine, int place, uint32_t score) {
  const bool is_protected = place < mine.prefix || place >= mine.suffix;
  return (static_cast<uint64_t>(is_protected) << 32) | score;
}

__device__ __forceinline__ void clear_histogram(SelectShared& shared) {
  for (int digit = threadIdx.x; digit < kDigits; digit += kSelectThreads) {
    shared.histogram[digit] = 0;
  }
}

/// \brief Pools and stores the score of every candidate, counts the kinds of candidates, and fills
/// the histogram of the ranks' highest digit. Ends in a barrier.
__device__ void score_candidates(const SelectTokensParams& op, Selection& mine,
                                 SelectShared& shared) {
  clear_histogram(shared);
  if (threadIdx.x == 0) {
    shared.prefix = 0;
    shared.suffix = mine.count;
    shared.used = shared.num_protected = shared.hopeless = 0;
  }
  __syncthreads();
  int prefix = 0;
  int suffix = mine.count;
  int used = 0;
  int num_protected = 0;
  int hopeless = 0;
  for (int place = threadIdx.x; place < mine.count; place += kSelectThreads) {
    const int64_t token = mine.candidates[place];
    uint32_t score = kUnusedScore;
    if (token >= 0 && token < mine.length) {
      score = ordered_score(pooled_score(mine, token, op.pool / 2));
      const bool first = token < op.protect_first;
      const bool last = token >= mine.length - op.protect_last;
      const bool is_protected = first || last;
      if (first) prefix = place + 1;
      if (last && place < suffix) suffix = place;
      ++used;
      num_protected += is_protected;
      hopeless += !is_protected && score == kMinusInfinityScore;
      const uint32_t digit = (static_cast<uint32_t>(is_protected) << 10) | (score >> kTopShift);
      atomicAdd(&shared.histogram[digit], 1);
    }
    mine.scores[place] = score;
  }
  prefix = __reduce_max_sync(kFullWarp, prefix);
  suffix = __reduce_min_sync(kFullWarp, suffix);
  used = __reduce_add_sync(kFullWarp, used);
  num_protected = __reduce_add_sync(kFullWarp, num_protected);
  hopeless = __reduce_add_sync(kFullWarp, hopeless);
  if (threadIdx.x % kWarpSize == 0) {
    atomicMax(&shared.prefix, prefix);
    atomicMin(&shared.suffix, suffix);
    atomicAdd(&shared.used, used);
    atomicAdd(&shared.num_protected, num_protected);
    atomicAdd(&shared.hopeless, hopeless);
  }
  __syncthreads();
  mine.prefix = shared.prefix;
  mine.suffix = shared.suffix;
}

/// How many of the sequence's candidates are selected.
__device__ __forceinline__ int64_t count_selected(const SelectTokensParams& op, int64_t target,
                                                  const SelectShared& shared, int64_t room) {
  int64_t count = shared.used;
  if (target >= 0) {
    int64_t wanted = target;
    if (op.cover_protected) {
      const int64_t least = shared.num_protected > 1 ? shared.num_protected : 1;
      if (wanted < least) wanted = least;
    }
    const int64_t eligible = shared.used - shared.hopeless;
    count = wanted < eligible ? wanted : eligible;
  }
  return count < room ? count : room;
}

/// \brief The digit in which the `needed`-th highest rank falls, and how many are needed of the
/// ranks with that digit. Results in shared.digit and shared.needed; ends in a barrier.
__device__ void find_digit(SelectShared& shared, int needed) {
  constexpr int kPerThread = kDigits / kSelectThreads;
  static_assert(kPerThread == 2);
  const int high = kDigits - 1 - kPerThread * threadIdx.x;
  const int in_high = shared.histogram[high];
  const int in_low = shared.histogram[high - 1];
  const Scan scan =
      block_scan<kSelectThreads>(static_cast<uint32_t>(in_high + in_low), shared.warp_sums);
  const int before = static_cast<int>(scan.before);
  if (before < needed && needed <= before + in_high) {
    shared.digit = high;
    shared.needed = needed - before;
  } else if (before + in_high < needed && needed <= before + in_high + in_low) {
    shared.digit = high - 1;
    shared.needed = needed - before - in_high;
  }
  __syncthreads();
}

/// Ranks above `rank` are selected, and the first `ties` places of those equal to it.
struct Threshold {
  uint64_t rank;
  uint32_t ties;
};

/// The threshold that selects exactly `count` of the used candidates, 0 < count < used.
__device__ Threshold find_threshold(const Selection& mine, SelectShared& shared, int count) {
  find_digit(shared, count);  // of the highest digits, counted with the scores
  uint64_t rank = static_cast<uint64_t>(shared.digit);
  int needed = shared.needed;
  for (int shift = kTopShift - kDigitBits; shift >= 0; shift -= kDigitBits) {
    __syncthreads();  // everyone has read the digit, and the histogram
    clear_histogram(shared);
    __syncthreads();
#pragma unroll 4
    for (int place = threadIdx.x; place < mine.count; place += kSelectThreads) {
      const uint32_t score = mine.scores[place];
      const uint64_t candidate = rank_of(mine, place, score);
      if (score != kUnusedScore && candidate >> (shift + kDigitBits) == rank) {
        atomicAdd(&shared.histogram[(candidate >> shift) & (kDigits - 1)], 1);
      }
    }
    __syncthreads();
    find_digit(shared, needed);
    rank = (rank << kDigitBits) | static_cast<uint64_t>(shared.digit);
    needed = shared.needed;
  }
  return {rank, static_cast<uint32_t>(needed)};
}

/// Writes the selected tokens in the order of their places, which is ascending. They are `count`,
/// but were the candidates not in order: never more are written.
__device__ void write_selected(const Selection& mine, SelectShared& shared, Threshold threshold,
                               int64_t* out, uint32_t count) {
  constexpr int kTile = kSelectThreads * kPlacesPerThread;
  uint32_t above_before = 0;  // ranks above the threshold in earlier tiles, and equal to it
  uint32_t equal_before = 0;
  for (int tile = 0; tile < mine.count; tile += kTile) {
    const int first = tile + static_cast<int>(threadIdx.x) * kPlacesPerThread;
    bool above[kPlacesPerThread];
    bool equal[kPlacesPerThread];
    uint32_t counts = 0;  // above in the higher half, equal in the lower
#pragma unroll
    for (int i = 0; i < kPlacesPerThread; ++i) {
      const int place = first + i;
      const uint32_t score = place < mine.count ? mine.scores[place] : kUnusedScore;
      const uint64_t rank = rank_of(mine, place, score);
      above[i] = score != kUnusedScore && rank > threshold.rank;
      equal[i] = score != kUnusedScore && rank == threshold.rank;
      counts += (static_cast<uint32_t>(above[i]) << 16) + equal[i];
    }
    const Scan scan = block_scan<kSelectThreads>(counts, shared.warp_sums);
    uint32_t num_above = above_before + (scan.before >> 16);
    uint32_t num_equal = equal_before + (scan.before & 0xffffu);
#pragma unroll
    for (int i = 0; i < kPlacesPerThread; ++i) {
      const uint32_t position = num_above + min(num_equal, threshold.ties);
      if ((above[i] || (equal[i] && num_equal < threshold.ties)) && position < count) {
        out[position] = mine.candidates[first + i];
      }
      num_above += above[i];
      num_equal += equal[i];
    }
    above_before += scan.total >> 16;
    equal_before += scan.total & 0xffffu;
  }
}

__device__ __forceinline__ void fill_unused(int64_t* indices, int64_t begin, int64_t end) {
  for (int64_t i = begin + threadIdx.x; i < end; i += kSelectThreads) indices[i] = -1;
}

/// \brief Selects among the candidates of sequence blockIdx.x.
///
/// Grid (batch). The candidates are read four times: scored (with the highest digit counted), two
/// more digits counted, written; all but the first time from launch.scores.
/// op.importance [batch, columns], op.candidates [num_candidates] -> op.indices [out_size],
/// op.selected [batch]
__global__ void __launch_bounds__(kSelectThreads) select_tokens_kernel(const SelectLaunch launch) {
  __shared__ SelectShared shared;
  const SelectTokensParams& op = launch.op;
  const int64_t b = blockIdx.x;
  const Range places = sequence_range(op.candidate_offsets, b, {0, op.num_candidates});
  const Range room = sequence_range(op.out_offsets, b, {0, op.out_size});
  Selection mine{op.importance + b * op.row_stride,
                 op.candidates + places.begin,
                 launch.scores + places.begin,
                 clamp(op.lengths[b], 0, op.columns),
                 static_cast<int>(places.size()),
                 0,
                 0};
  score_candidates(op, mine, shared);
  const int count = static_cast<int>(count_selected(op, op.targets[b], shared, room.size()));
  if (count > 0) {
    // Every used rank is above 0.
    const Threshold threshold =
        count < shared.used ? find_threshold(mine, shared, count) : Threshold{0, 0};
    write_selected(mine, shared, threshold, op.indices + room.begin, static_cast<uint32_t>(count));
  }
  if (threadIdx.x == 0) op.selected[b] = count;
  fill_unused(op.indices, room.begin + count, room.end);
  // Places that no sequence's room covers.
  if (b == 0) fill_unused(op.indices, 0, room.begin);
  if (b == op.batch - 1) fill_unused(op.indices, room.end, op.out_size);
}

}  // namespace
}  // namespace cuda

void select_tokens_cuda(const SelectTokensParams& op) {
  const cuda::Launcher launcher("select_tokens", op.device);
  if (op.batch == 0) {  // every byte of -1
    launcher.fill(op.indices, 0xff, op.out_size * static_cast<int64_t>(sizeof(int64_t)));
    return;
  }
  const cuda::DeviceMemory<uint32_t> scores = launcher.allocate<uint32_t>(op.num_candidates);
  launcher.launch(cuda::select_tokens_kernel, static_cast<unsigned>(op.batch), cuda::kSelectThreads,
                  0, {op, scores.data()});
}

}  // namespace lazyllm
