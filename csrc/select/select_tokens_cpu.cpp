#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>

#include "../common/values.h"
#include "select_tokens.h"

#define LAZYLLM_KERNEL "../select/select_tokens_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {
namespace {

constexpr char kOp[] = "select_tokens";

// Fewer tokens than this are selected in less time than it takes to wake a thread (some 10 us).
constexpr int64_t kGrainTokens = 8 * 1024;

// All used, ascending and within the sequence: the common case, in a loop without branches.
bool are_plain(const int64_t* candidates, int64_t size, int64_t n) {
  if (size == 0) return true;
  bool plain = candidates[0] >= 0 && candidates[size - 1] < n;
  for (int64_t i = 1; i < size; ++i) plain &= candidates[i] > candidates[i - 1];
  return plain;
}

void check_candidates(const SelectTokensParams& p, int64_t b) {
  const int64_t n = p.lengths[b];
  const int64_t size = p.candidate_offsets[b + 1] - p.candidate_offsets[b];
  if (are_plain(p.candidates + p.candidate_offsets[b], size, n)) return;
  int64_t before = -1;
  for (int64_t i = p.candidate_offsets[b]; i < p.candidate_offsets[b + 1]; ++i) {
    const int64_t j = p.candidates[i];
    if (j == -1) continue;
    if (j < -1 || j >= n) {
      refuse(kOp, "candidates", "-1 to " + std::to_string(n - 1),
             std::to_string(j) + " at place " + std::to_string(i));
    }
    if (j <= before) {
      refuse(kOp, "candidates", "ascending tokens",
             std::to_string(before) + " before " + std::to_string(j));
    }
    before = j;
  }
}

void check_values(const SelectTokensParams& p) {
  check_offset_values(kOp, "candidate_offsets", p.candidate_offsets, p.batch, p.num_candidates);
  for (int64_t b = 0; b < p.batch; ++b) {
    if (p.lengths[b] < 0 || p.lengths[b] > p.columns) {
      refuse(kOp, "lengths", "0 to " + std::to_string(p.columns), std::to_string(p.lengths[b]));
    }
    check_candidates(p, b);
  }
}

int64_t scratch_size(const SelectTokensParams& p, int64_t b) {
  const int64_t n = p.lengths[b];
  const int64_t candidates = p.candidate_offsets[b + 1] - p.candidate_offsets[b];
  return n + 2 * std::min(p.pool / 2, n) + 2 * candidates;
}

void select_sequences(const SelectTokensParams& p, int64_t begin, int64_t end) {
  int64_t size = 0;
  for (int64_t b = begin; b < end; ++b) size = std::max(size, scratch_size(p, b));
  const std::unique_ptr<int32_t[]> scratch(new int32_t[size]);
  LAZYLLM_CALL_KERNEL(select_sequences(p, begin, end, scratch.get()));
}

}  // namespace

void select_tokens_cpu(const SelectTokensParams& p) {
  check_values(p);
  const int64_t grain = std::max<int64_t>(1, kGrainTokens / std::max<int64_t>(1, p.columns));
  torch::stable::parallel_for(0, p.batch, grain,
                              [&](int64_t begin, int64_t end) { select_sequences(p, begin, end); });
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t room = p.out_offsets[b + 1] - p.out_offsets[b];
    if (p.selected[b] > room) {
      refuse(
          kOp, "out_offsets",
          "room for " + std::to_string(p.selected[b]) + " tokens of sequence " + std::to_string(b),
          std::to_string(room));
    }
  }
}

}  // namespace lazyllm
