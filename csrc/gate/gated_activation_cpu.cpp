#include "../cpu/parallel.h"
#include "gated_activation.h"

#define LAZYLLM_KERNEL "../gate/gated_activation_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {

void gated_activation_cpu(const GatedActivationParams& p) {
  const int64_t row_bytes = p.inner * element_bytes(p.dtype);
  copy_in_parallel(p.rows, row_bytes, [&](int64_t begin, int64_t end) {
    LAZYLLM_CALL_TYPED_KERNEL(p.dtype, gate_rows<T>(p, begin, end));
  });
}

}  // namespace lazyllm
