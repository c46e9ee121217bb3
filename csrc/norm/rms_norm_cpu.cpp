#include "../cpu/parallel.h"
#include "rms_norm.h"

#define LAZYLLM_KERNEL "../norm/rms_norm_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {

void rms_norm_cpu(const RmsNormParams& p) {
  const int64_t row_bytes = p.dim * element_bytes(p.dtype);
  copy_in_parallel(p.rows, row_bytes, [&](int64_t begin, int64_t end) {
    LAZYLLM_CALL_TYPED_KERNEL(p.dtype, norm_rows<T>(p, begin, end));
  });
}

}  // namespace lazyllm
