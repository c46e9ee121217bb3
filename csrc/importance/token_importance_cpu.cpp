#include "token_importance_cpu.h"

#include <algorithm>

#include "../cpu/scratch.h"
#include "../cpu/tasks.h"

#define LAZYLLM_KERNEL "../importance/token_importance_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {
namespace {

// Multiplications that are worth waking the threads for: about 20 us of one core.
constexpr int64_t kParallelProducts = 256 * 1024;

// Weights that are kept at once, 64 MiB: a sequence's rows are scored in parts, and the keys read once
// for each of them. It depends on the sequence alone, so that a batch changes no result.
constexpr int64_t kWeightsAtOnce = 16 * 1024 * 1024;

ImportancePlan make_plan(const TokenImportanceParams& p, int64_t width, const Sequence& sequence,
                         int64_t first_row, int64_t num_rows) {
  ImportancePlan plan{};
  plan.sequence = &sequence;
  plan.rows = sequence.rows.data() + first_row;
  plan.num_rows = num_rows;
  plan.num_keys = plan.rows[num_rows - 1].end;
  plan.chunks = (plan.num_keys + kImportanceKeys - 1) / kImportanceKeys;
  plan.queries = num_rows * p.query.num_heads;
  plan.group = p.query.num_heads / p.key.num_kv_heads;
  plan.padded_dim = (p.query.head_dim + width - 1) / width * width;
  return plan;
}

void place_buffers(ImportancePlan& plan, float* free) {
  const int64_t scores = plan.chunks * plan.queries;
  plan.packed = free;
  plan.weights = plan.packed + plan.queries * plan.padded_dim;
  plan.broken = plan.weights + scores * kImportanceKeys;
  plan.maxima = plan.broken + plan.chunks * kImportanceKeys;
  plan.sums = plan.maxima + scores;
  plan.alive = plan.sums + scores;
}

// Adds to the importance what some rows of a sequence say.
void score_rows(const TokenImportanceParams& p, const TokenImportanceKernels& kernels,
                const LogitScale& scale, ImportancePlan plan) {
  const Scratch buffer(plan.floats());
  place_buffers(plan, buffer.data());
  kernels.pack(p, scale, plan);
  const int64_t products = plan.num_keys * plan.queries * plan.padded_dim;
  run_tasks(plan.chunks, 0, products >= kParallelProducts,
            [&](int64_t chunk, float*) { kernels.score(p, scale, plan, chunk); });
  kernels.normalize(p, plan);
  run_tasks(plan.chunks, 0, products >= 64 * kParallelProducts,
            [&](int64_t chunk, float*) { kernels.reduce(p, plan, chunk); });
}

void score_sequence(const TokenImportanceParams& p, const TokenImportanceKernels& kernels,
                    const LogitScale& scale, const Sequence& sequence) {
  const int64_t rows = static_cast<int64_t>(sequence.rows.size());
  if (rows == 0 || p.query.num_heads == 0) return;
  const int64_t weights_of_row = sequence.rows.back().end * p.query.num_heads;
  const int64_t at_once = std::max<int64_t>(1, kWeightsAtOnce / weights_of_row);
  for (int64_t row = 0; row < rows; row += at_once) {
    score_rows(p, kernels, scale,
               make_plan(p, kernels.width, sequence, row, std::min(at_once, rows - row)));
  }
}

}  // namespace

void token_importance_cpu(const TokenImportanceParams& p) {
  constexpr char kOp[] = "token_importance";
  check_packed_values(kOp, p.query, p.key);
  std::fill_n(p.importance, p.key.count, 0.0f);
  TokenImportanceKernels kernels{};
  LAZYLLM_CALL_TYPED_KERNEL(p.query.dtype, fill_kernels<T>(kernels));
  const LogitScale scale(p.scale, p.softcap);
  for (int64_t b = 0; b < p.query.batch; ++b) {
    score_sequence(p, kernels, scale, visible_sequence(kOp, p.query, p.key, b, 0));
  }
}

}  // namespace lazyllm
