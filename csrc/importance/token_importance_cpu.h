// The parts of token_importance on the CPU: kernels that know no torch, one set for each instruction
// set and dtype.
#pragma once

#include "../cpu/logits.h"
#include "../cpu/visible.h"
#include "token_importance.h"

namespace lazyllm {

// Keys of a chunk: one task. It must not depend on the batch or the threads.
constexpr int64_t kImportanceKeys = 256;

// Some rows of a sequence, and their place in the buffers. `queries` = num_rows * num_heads, in the order
// [num_kv_heads, num_rows, group].
struct ImportancePlan {
  const Sequence* sequence;
  const VisibleRow* rows;
  int64_t num_rows;
  int64_t num_keys;  // used keys that some row sees
  int64_t chunks;
  int64_t queries;
  int64_t group;
  int64_t padded_dim;  // head_dim rounded up to whole vectors
  float* packed;       // [queries, padded_dim] of words
  float* alive;        // [queries] 1, or 0 for a query that holds a NaN
  float* weights;      // [chunks, queries, kImportanceKeys] 2^(log2 * logit - maximum)
  float* maxima;       // [chunks, queries] of log2 * logit
  float* sums;         // [chunks, queries] of weights
  float* broken;       // [chunks, kImportanceKeys] NaN for keys with a NaN or +inf logit, else 0

  int64_t floats() const {
    return queries * (padded_dim + 1) + chunks * (queries + 1) * kImportanceKeys +
           2 * chunks * queries;
  }
};

struct TokenImportanceKernels {
  int64_t width;  // floats of a vector

  // Rows -> plan.packed and plan.alive.
  void (*pack)(const TokenImportanceParams& params, const LogitScale& scale,
               const ImportancePlan& plan);
  // The keys of one chunk -> its weights, maxima, sums and broken.
  void (*score)(const TokenImportanceParams& params, const LogitScale& scale,
                const ImportancePlan& plan, int64_t chunk);
  // Maxima and sums of all chunks -> in the place of the sums, what each weight counts.
  void (*normalize)(const TokenImportanceParams& params, const ImportancePlan& plan);
  // Adds the weights of one chunk to params.importance.
  void (*reduce)(const TokenImportanceParams& params, const ImportancePlan& plan, int64_t chunk);
};

}  // namespace lazyllm
