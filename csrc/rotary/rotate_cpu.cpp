#include "../cpu/parallel.h"
#include "rotate.h"

#define LAZYLLM_KERNEL "../rotary/rotate_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {

void rotate_cpu(const RotateParams& p) {
  const int64_t row_bytes = p.num_heads * p.head_dim * element_bytes(p.dtype);
  copy_in_parallel(p.rows, row_bytes, [&](int64_t begin, int64_t end) {
    LAZYLLM_CALL_TYPED_KERNEL(p.dtype, rotate_rows<T>(p, begin, end));
  });
}

}  // namespace lazyllm
