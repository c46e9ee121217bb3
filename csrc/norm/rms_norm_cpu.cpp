#include <torch/csrc/stable/ops.h>

#include "../cpu/parallel.h"
#include "rms_norm.h"

#define LAZYLLM_KERNEL "../norm/rms_norm_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {

void norm_rows_cpu(const RmsNormParams& p) {
  visit_float(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t row_bytes = p.dim * static_cast<int64_t>(sizeof(T));
    if (row_bytes == 0) return;
    torch::stable::parallel_for(0, p.rows, copy_grain(row_bytes), [&](int64_t begin, int64_t end) {
      LAZYLLM_CALL_KERNEL(norm_rows<T>(p, begin, end));
    });
  });
}

Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps, double offset) {
  const Checks check("rms_norm", x);
  RmsNormParams p = check_rms_norm(check, x, weight, eps, offset);
  Tensor output = torch::stable::new_empty(x, {p.rows, p.dim});
  p.output = output.mutable_data_ptr();
  norm_rows_cpu(p);
  return output;
}

}  // namespace lazyllm
