#include "lazy_attention_cpu.h"

#include <torch/csrc/stable/ops.h>

#include <cstring>

#define LAZYLLM_KERNEL_HAS_TILES
#define LAZYLLM_KERNEL "../attention/lazy_attention_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {

LazyAttentionKernels lazy_attention_kernels(ScalarType dtype) {
  LazyAttentionKernels kernels;
  visit_float(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    LAZYLLM_CALL_KERNEL(fill_kernels<T>(kernels));
  });
  return kernels;
}

Tensor lazy_attention_cpu(const Tensor& query, const Tensor& query_index,
                          const Tensor& query_offsets, const Tensor& key_store,
                          const Tensor& value_store, const Tensor& key_slots,
                          const Tensor& key_index, const Tensor& key_offsets, double scale,
                          int64_t window, double softcap) {
  const Checks check("lazy_attention", query);
  LazyAttentionParams params =
      check_lazy_attention(check, query, query_index, query_offsets, key_store, value_store,
                           key_slots, key_index, key_offsets, scale, window, softcap);
  check_packed_values(check, params.query, params.key);
  const Queries& queries = params.query;

  const int64_t group = queries.num_heads / params.key.num_kv_heads;
  std::vector<Sequence> few, many;
  int64_t seeing = 0;
  for (int64_t b = 0; b < queries.batch; ++b) {
    Sequence sequence = visible_sequence(check, queries, params.key, b, params.window);
    const int64_t rows = static_cast<int64_t>(sequence.rows.size());
    if (rows == 0) continue;
    seeing += rows;
    (rows * group <= kFewQueries ? few : many).push_back(std::move(sequence));
  }
  // Rows that see nothing are zero; the others are written whole.
  Tensor output = seeing == queries.rows ? torch::stable::new_empty(query, query.sizes())
                                         : torch::stable::new_zeros(query, query.sizes());
  params.output = output.mutable_data_ptr();
  if (output.numel() == 0) return output;
  const LazyAttentionKernels kernels = lazy_attention_kernels(queries.dtype);
  attend_many_rows(params, kernels, many);
  attend_few_rows(params, kernels, few);
  return output;
}

}  // namespace lazyllm
