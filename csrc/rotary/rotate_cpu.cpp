#include <torch/csrc/stable/ops.h>

#include "../cpu/parallel.h"
#include "rotate.h"

#define LAZYLLM_KERNEL "../rotary/rotate_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {

void rotate_rows_cpu(const RotateParams& p) {
  visit_float(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t row_bytes = p.num_heads * p.head_dim * static_cast<int64_t>(sizeof(T));
    if (row_bytes == 0) return;
    torch::stable::parallel_for(0, p.rows, copy_grain(row_bytes), [&](int64_t begin, int64_t end) {
      LAZYLLM_CALL_KERNEL(rotate_rows<T>(p, begin, end));
    });
  });
}

Tensor rotate_cpu(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  const Checks check("rotate", x);
  RotateParams p = check_rotate(check, x, cos, sin, interleaved);
  Tensor output = torch::stable::new_empty(x, {p.rows, p.num_heads, p.head_dim});
  p.output = output.mutable_data_ptr();
  rotate_rows_cpu(p);
  return output;
}

}  // namespace lazyllm
