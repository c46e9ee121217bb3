#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>

#include "select_tokens.h"

#define LAZYLLM_KERNEL "../select/select_tokens_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {
namespace {

// Fewer tokens than this are selected in less time than it takes to wake a thread (some 10 us).
constexpr int64_t kGrainTokens = 8 * 1024;

// All used, ascending and within the sequence: the common case, in a loop without branches.
bool are_plain(const int64_t* candidates, int64_t size, int64_t n) {
  if (size == 0) return true;
  bool plain = candidates[0] >= 0 && candidates[size - 1] < n;
  for (int64_t i = 1; i < size; ++i) plain &= candidates[i] > candidates[i - 1];
  return plain;
}

void check_candidates(const Checks& check, const SelectTokensParams& p, int64_t b) {
  const int64_t n = p.lengths[b];
  const int64_t size = p.candidate_offsets[b + 1] - p.candidate_offsets[b];
  if (are_plain(p.candidates + p.candidate_offsets[b], size, n)) return;
  int64_t before = -1;
  for (int64_t i = p.candidate_offsets[b]; i < p.candidate_offsets[b + 1]; ++i) {
    const int64_t j = p.candidates[i];
    if (j == -1) continue;
    if (j < -1 || j >= n) {
      check.refuse("candidates", "-1 to " + std::to_string(n - 1),
                   std::to_string(j) + " at place " + std::to_string(i));
    }
    if (j <= before) {
      check.refuse("candidates", "ascending tokens",
                   std::to_string(before) + " before " + std::to_string(j));
    }
    before = j;
  }
}

void check_values(const Checks& check, const SelectTokensParams& p) {
  check.offset_values("candidate_offsets", p.candidate_offsets, p.batch, p.num_candidates);
  check.offset_values("out_offsets", p.out_offsets, p.batch, p.out_size);
  for (int64_t b = 0; b < p.batch; ++b) {
    if (p.lengths[b] < 0 || p.lengths[b] > p.columns) {
      check.refuse("lengths", "0 to " + std::to_string(p.columns), std::to_string(p.lengths[b]));
    }
    check_candidates(check, p, b);
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

std::tuple<Tensor, Tensor> select_tokens_cpu(const Tensor& importance, const Tensor& lengths,
                                             const Tensor& candidates,
                                             const Tensor& candidate_offsets, const Tensor& targets,
                                             const Tensor& out_offsets, int64_t out_size,
                                             int64_t pool, int64_t protect_first,
                                             int64_t protect_last, bool cover_protected) {
  const Checks check("select_tokens", importance);
  SelectTokensParams p = check_select_tokens(check, importance, lengths, candidates,
                                             candidate_offsets, targets, out_offsets, out_size,
                                             pool, protect_first, protect_last, cover_protected);
  check_values(check, p);
  const Tensor indices = torch::stable::new_empty(lengths, {out_size});
  const Tensor selected = torch::stable::new_empty(lengths, {p.batch});
  p.indices = indices.mutable_data_ptr<int64_t>();
  p.selected = selected.mutable_data_ptr<int64_t>();

  const int64_t grain = std::max<int64_t>(1, kGrainTokens / std::max<int64_t>(1, p.columns));
  torch::stable::parallel_for(0, p.batch, grain,
                              [&](int64_t begin, int64_t end) { select_sequences(p, begin, end); });
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t room = p.out_offsets[b + 1] - p.out_offsets[b];
    if (p.selected[b] > room) {
      check.refuse(
          "out_offsets",
          "room for " + std::to_string(p.selected[b]) + " tokens of sequence " + std::to_string(b),
          std::to_string(room));
    }
  }
  return {indices, selected};
}

}  // namespace lazyllm
