#include "capability.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace lazyllm {
namespace {

constexpr char kVariable[] = "LAZYLLM_CPU_CAPABILITY";

CpuCapability choose() {
  const CpuCapability supported = supported_cpu_capability();
  const char* wanted = std::getenv(kVariable);
  if (wanted == nullptr || *wanted == '\0') return supported;
  for (CpuCapability capability : {CpuCapability::scalar, CpuCapability::avx2,
                                   CpuCapability::avx512, CpuCapability::avx512_bf16}) {
    if (std::strcmp(wanted, name_of(capability)) != 0) continue;
    if (capability <= supported) return capability;
    throw std::runtime_error(std::string("lazyllm: ") + kVariable + ": expected at most " +
                             name_of(supported) + ", which this processor has, got " + wanted);
  }
  throw std::runtime_error(std::string("lazyllm: ") + kVariable +
                           ": expected scalar, avx2, avx512 or avx512_bf16, got " + wanted);
}

}  // namespace

const char* name_of(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::avx512_bf16:
      return "avx512_bf16";
    case CpuCapability::avx512:
      return "avx512";
    case CpuCapability::avx2:
      return "avx2";
    default:
      return "scalar";
  }
}

CpuCapability supported_cpu_capability() {
#if defined(__x86_64__)
  // These ask the operating system too, which has to save the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) {
    return __builtin_cpu_supports("avx512bf16") ? CpuCapability::avx512_bf16
                                                : CpuCapability::avx512;
  }
  if (avx2) return CpuCapability::avx2;
#endif
  return CpuCapability::scalar;
}

CpuCapability cpu_capability() {
  static const CpuCapability chosen = choose();
  return chosen;
}

}  // namespace lazyllm
