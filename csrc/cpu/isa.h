// One kernel source, compiled once for each instruction set, the one in use chosen at run time.
//
//   #include "../common/..."                                  // everything the kernel needs
//   #define LAZYLLM_KERNEL "../attention/lazy_attention_kernel.inc"   // seen from this file
//   #include "../cpu/isa.h"
//   ... LAZYLLM_CALL_KERNEL(run(params)) ...
//   ... LAZYLLM_CALL_TYPED_KERNEL(dtype, run<T>(params)) ...    // T: the element type of dtype
//
// The kernel file, and simd.h before it, is included in the namespaces lazyllm::scalar, lazyllm::avx2,
// lazyllm::avx512 and lazyllm::avx512_bf16 (x86-64 only; the last has all of avx512, and products of
// bfloat16 pairs), and in lazyllm::amx, which has all of that and tiles, if LAZYLLM_KERNEL_HAS_TILES is
// defined before; a kernel without them runs that of avx512_bf16. It includes no header: one that is
// read under a target pragma would leave its inline functions compiled for that target to the whole
// program. For the same reason no function with external linkage outside of these namespaces may be
// defined in it.
//
// No include guard: a .cpp has one kernel, and includes this once.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../common/capability.h"
#include "../common/types.h"

#ifndef LAZYLLM_KERNEL
#error "define LAZYLLM_KERNEL before including cpu/isa.h"
#endif

#define LAZYLLM_INLINE inline __attribute__((always_inline))

// Before a loop that may be vectorized though the compiler cannot see it.
#if defined(__clang__)
#define LAZYLLM_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define LAZYLLM_INDEPENDENT _Pragma("GCC ivdep")
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#define LAZYLLM_HAS_X86_KERNELS 1
#endif

// Between these two, functions are compiled for `targets`.
#define LAZYLLM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define LAZYLLM_PUSH_TARGET(targets) \
  LAZYLLM_PRAGMA(clang attribute push(__attribute__((target(targets))), apply_to = function))
#define LAZYLLM_POP_TARGET LAZYLLM_PRAGMA(clang attribute pop)
#define LAZYLLM_AVX512 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#else
// GCC 12 takes the undefined lanes of its own AVX-512 intrinsics for a mistake (GCC bug 105593).
#define LAZYLLM_PUSH_TARGET(targets)                       \
  LAZYLLM_PRAGMA(GCC push_options)                         \
  LAZYLLM_PRAGMA(GCC target(targets))                      \
  LAZYLLM_PRAGMA(GCC diagnostic push)                      \
  LAZYLLM_PRAGMA(GCC diagnostic ignored "-Wuninitialized") \
  LAZYLLM_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized")
#define LAZYLLM_POP_TARGET           \
  LAZYLLM_PRAGMA(GCC diagnostic pop) \
  LAZYLLM_PRAGMA(GCC pop_options)
#define LAZYLLM_AVX512 "prefer-vector-width=512,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#endif

#define LAZYLLM_ISA_AVX2 0
#define LAZYLLM_ISA_AVX512 0
#define LAZYLLM_ISA_AVX512_BF16 0
#define LAZYLLM_ISA_AMX 0
namespace lazyllm::scalar {
#include "simd.h"
#include LAZYLLM_KERNEL
}  // namespace lazyllm::scalar

#ifdef LAZYLLM_HAS_X86_KERNELS

#undef LAZYLLM_ISA_AVX2
#define LAZYLLM_ISA_AVX2 1
LAZYLLM_PUSH_TARGET("avx2,fma,f16c")
namespace lazyllm::avx2 {
#include "simd.h"
#include LAZYLLM_KERNEL
}  // namespace lazyllm::avx2
LAZYLLM_POP_TARGET
#undef LAZYLLM_ISA_AVX2
#define LAZYLLM_ISA_AVX2 0

#undef LAZYLLM_ISA_AVX512
#define LAZYLLM_ISA_AVX512 1
LAZYLLM_PUSH_TARGET(LAZYLLM_AVX512)
namespace lazyllm::avx512 {
#include "simd.h"
#include LAZYLLM_KERNEL
}  // namespace lazyllm::avx512
LAZYLLM_POP_TARGET

#undef LAZYLLM_ISA_AVX512_BF16
#define LAZYLLM_ISA_AVX512_BF16 1
LAZYLLM_PUSH_TARGET(LAZYLLM_AVX512 ",avx512bf16")
namespace lazyllm::avx512_bf16 {
#include "simd.h"
#include LAZYLLM_KERNEL
}  // namespace lazyllm::avx512_bf16
LAZYLLM_POP_TARGET

#ifdef LAZYLLM_KERNEL_HAS_TILES
#undef LAZYLLM_ISA_AMX
#define LAZYLLM_ISA_AMX 1
LAZYLLM_PUSH_TARGET(LAZYLLM_AVX512 ",avx512bf16,amx-tile,amx-bf16")
namespace lazyllm::amx {
#include "simd.h"
#include LAZYLLM_KERNEL
}  // namespace lazyllm::amx
LAZYLLM_POP_TARGET
#else
namespace lazyllm {
namespace amx = avx512_bf16;
}
#endif

#define LAZYLLM_CASE(isa, call)       \
  case ::lazyllm::CpuCapability::isa: \
    ::lazyllm::isa::call;             \
    break;

#define LAZYLLM_CALL_KERNEL(call)        \
  switch (::lazyllm::cpu_capability()) { \
    LAZYLLM_CASE(amx, call)              \
    LAZYLLM_CASE(avx512_bf16, call)      \
    LAZYLLM_CASE(avx512, call)           \
    LAZYLLM_CASE(avx2, call)             \
    LAZYLLM_CASE(scalar, call)           \
  }

#else

#define LAZYLLM_CALL_KERNEL(call)    \
  (void)::lazyllm::cpu_capability(); \
  ::lazyllm::scalar::call;

#endif

#define LAZYLLM_CALL_TYPED_KERNEL(dtype, call)      \
  ::lazyllm::visit_float(dtype, [&](auto element) { \
    using T = typename decltype(element)::type;     \
    LAZYLLM_CALL_KERNEL(call)                       \
  })
