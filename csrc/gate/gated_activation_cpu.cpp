#include <torch/csrc/stable/ops.h>

#include "../cpu/parallel.h"
#include "gated_activation.h"

#define LAZYLLM_KERNEL "../gate/gated_activation_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {

void gate_rows_cpu(const GateParams& p) {
  visit_float(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t row_bytes = p.inner * static_cast<int64_t>(sizeof(T));
    if (row_bytes == 0) return;
    torch::stable::parallel_for(0, p.rows, copy_grain(row_bytes), [&](int64_t begin, int64_t end) {
      LAZYLLM_CALL_KERNEL(gate_rows<T>(p, begin, end));
    });
  });
}

Tensor gated_activation_cpu(const Tensor& gate, const Tensor& up, std::string activation) {
  const Checks check("gated_activation", gate);
  GateParams p = check_gated_activation(check, gate, up, activation);
  Tensor output = torch::stable::new_empty(gate, {p.rows, p.inner});
  p.output = output.mutable_data_ptr();
  gate_rows_cpu(p);
  return output;
}

}  // namespace lazyllm
