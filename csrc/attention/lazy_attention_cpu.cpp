#include "lazy_attention_cpu.h"

#include <cstring>
#include <utility>

#define LAZYLLM_KERNEL_HAS_TILES
#define LAZYLLM_KERNEL "../attention/lazy_attention_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {

void lazy_attention_cpu(const LazyAttentionParams& p) {
  constexpr char kOp[] = "lazy_attention";
  check_packed_values(kOp, p.query, p.key);
  const int64_t group = p.query.num_heads / p.key.num_kv_heads;
  std::vector<Sequence> few, many;
  int64_t seeing = 0;
  for (int64_t b = 0; b < p.query.batch; ++b) {
    Sequence sequence = visible_sequence(kOp, p.query, p.key, b, p.window);
    const int64_t rows = static_cast<int64_t>(sequence.rows.size());
    if (rows == 0) continue;
    seeing += rows;
    (rows * group <= kFewQueries ? few : many).push_back(std::move(sequence));
  }
  const int64_t row_bytes = p.query.num_heads * p.query.head_dim * element_bytes(p.query.dtype);
  if (p.query.rows * row_bytes == 0) return;
  // Rows that see nothing are zero; the others are written whole.
  if (seeing < p.query.rows) std::memset(p.output, 0, p.query.rows * row_bytes);
  LazyAttentionKernels kernels{};
  LAZYLLM_CALL_TYPED_KERNEL(p.query.dtype, fill_kernels<T>(kernels));
  attend_many_rows(p, kernels, many);
  attend_few_rows(p, kernels, few);
}

}  // namespace lazyllm
