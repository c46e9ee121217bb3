#include "select_tokens.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../common/checks.h"
#include "../common/values.h"

namespace lazyllm {
namespace {

std::tuple<Tensor, Tensor> select_tokens(const Tensor& importance, const Tensor& lengths,
                                         const Tensor& candidates, const Tensor& candidate_offsets,
                                         const Tensor& targets, const Tensor& out_offsets,
                                         int64_t out_size, int64_t pool, int64_t protect_first,
                                         int64_t protect_last, bool cover_protected) {
  const Checks check("select_tokens", importance);
  check.floats("importance", importance, 2, ScalarType::Float);
  check.index("lengths", lengths);
  const int64_t batch = lengths.size(0);
  check.size("importance", importance, 0, batch);
  check.index("candidates", candidates);
  check.index("candidate_offsets", candidate_offsets, batch + 1);
  check.index("targets", targets, batch);
  check.index("out_offsets", out_offsets, batch + 1);
  check.at_least("out_size", out_size, 0);
  if (pool < 1 || pool % 2 == 0) {
    check.refuse("pool", "an odd number, 1 or more", std::to_string(pool));
  }
  check.at_least("protect_first", protect_first, 0);
  check.at_least("protect_last", protect_last, 0);
  if (check.device() == kCpu) {  // looked at before memory is taken for so many
    check_offset_values("select_tokens", "out_offsets", out_offsets.const_data_ptr<int64_t>(),
                        batch, out_size);
  }
  Tensor indices = torch::stable::new_empty(lengths, {out_size});
  Tensor selected = torch::stable::new_empty(lengths, {batch});
  run<select_tokens_cpu, select_tokens_cuda>(SelectTokensParams{
      .importance = importance.const_data_ptr<float>(),
      .lengths = lengths.const_data_ptr<int64_t>(),
      .candidates = candidates.const_data_ptr<int64_t>(),
      .candidate_offsets = candidate_offsets.const_data_ptr<int64_t>(),
      .targets = targets.const_data_ptr<int64_t>(),
      .out_offsets = out_offsets.const_data_ptr<int64_t>(),
      .batch = batch,
      .columns = importance.size(1),
      .row_stride = importance.stride(0),
      .num_candidates = candidates.size(0),
      .out_size = out_size,
      .pool = pool,
      .protect_first = protect_first,
      .protect_last = protect_last,
      .cover_protected = cover_protected,
      .indices = indices.mutable_data_ptr<int64_t>(),
      .selected = selected.mutable_data_ptr<int64_t>(),
      .device = check.device(),
  });
  return {indices, selected};
}

}  // namespace

constinit Operator* const select_tokens_operator = TORCH_BOX(&select_tokens);

}  // namespace lazyllm
