// select_tokens: the candidates of each sequence that go on, in ascending order.
//
//   importance float32 [B, C], lengths [B] = n <= C; entries from n on are never read
//   candidates [Kc] token indices 0 ... n - 1, packed by candidate_offsets [B + 1], ascending among
//   the used ones, -1 unused
//   targets [B], out_offsets [B + 1] into the result, out_offsets[B] == out_size
//   -> indices int64 [out_size]: sequence b's selection from out_offsets[b] on, -1 in unused places;
//      selected int64 [B]: how many
//
// The score of candidate j is max(importance[b, t]) over the tokens t of [j - pool / 2, j + pool / 2]
// within 0 ... n - 1, NaN counting as -inf. Protected are the candidates with j < protect_first or
// j >= n - protect_last. Ranking: protected ones first, then the higher score, then the lower j.
// A candidate that is not protected and scores -inf is never selected. How many are selected:
//   min(candidates of b, cover_protected ? max(1, protected of b, targets[b]) : targets[b])
// and targets[b] < 0 keeps all candidates, whatever their scores.
//
// More than the room out_offsets gives: the CPU refuses, CUDA takes the best-ranked that fit.
// Exact: -0.0 equals 0.0, ties go to the lower index, and the result is the same on every device.
// Empty input is legal. Nothing is aliased.
#pragma once

#include "../common/operator.h"

namespace lazyllm {

struct SelectTokensParams {
  const float* importance;           // [batch, columns], row_stride
  const int64_t* lengths;            // [batch]
  const int64_t* candidates;         // [num_candidates], -1 unused
  const int64_t* candidate_offsets;  // [batch + 1] into num_candidates
  const int64_t* targets;            // [batch], < 0: all
  const int64_t* out_offsets;        // [batch + 1] into out_size
  int64_t batch;
  int64_t columns;
  int64_t row_stride;  // in elements
  int64_t num_candidates;
  int64_t out_size;
  int64_t pool;  // odd, >= 1
  int64_t protect_first;
  int64_t protect_last;
  bool cover_protected;
  int64_t* indices;   // [out_size]
  int64_t* selected;  // [batch]
  int32_t device = kCpu;
};

extern Operator* const select_tokens_operator;

void select_tokens_cpu(const SelectTokensParams& params);
void select_tokens_cuda(const SelectTokensParams& params);

}  // namespace lazyllm
