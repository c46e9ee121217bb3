#include <torch/csrc/stable/ops.h>

#include "../cpu/parallel.h"
#include "rotate.h"

#define LAZYLLM_KERNEL "../rotary/rotate_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {

Tensor rotate_cpu(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  const Checks check("rotate", x);
  RotateParams p = check_rotate(check, x, cos, sin, interleaved);
  Tensor output = torch::stable::new_empty(x, {p.rows, p.num_heads, p.head_dim});
  p.output = output.mutable_data_ptr();
  const int64_t row_bytes = p.num_heads * p.head_dim * static_cast<int64_t>(output.element_size());
  if (row_bytes == 0) return output;
  visit_float(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    torch::stable::parallel_for(0, p.rows, copy_grain(row_bytes), [&](int64_t begin, int64_t end) {
      LAZYLLM_CALL_KERNEL(rotate_rows<T>(p, begin, end));
    });
  });
  return output;
}

}  // namespace lazyllm
