#include "capability.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lazyllm {
namespace {

constexpr char kVariable[] = "LAZYLLM_CPU_CAPABILITY";

#if defined(__x86_64__) && defined(__linux__)
constexpr int kTileData = 18;  // XFEATURE_XTILEDATA

// Whether tiles of bfloat16 can be multiplied, and Linux would give a process the registers.
bool has_amx() {
  constexpr int kSupported = 0x1021;                // ARCH_GET_XCOMP_SUPP
  constexpr unsigned kTiles = 1u << 24 | 1u << 22;  // AMX-TILE, AMX-BF16
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  uint64_t features = 0;
  return (edx & kTiles) == kTiles && syscall(SYS_arch_prctl, kSupported, &features) == 0 &&
         (features >> kTileData & 1) != 0;
}

// Asks for the registers, for the whole process and for good; one with small signal stacks gets none.
bool get_tiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool has_amx() { return false; }
bool get_tiles() { return false; }
#endif

CpuCapability choose() {
  const CpuCapability supported = supported_cpu_capability();
  const char* wanted = std::getenv(kVariable);
  if (wanted == nullptr || *wanted == '\0') {
    return supported == CpuCapability::amx && !get_tiles() ? CpuCapability::avx512_bf16 : supported;
  }
  for (CpuCapability capability :
       {CpuCapability::scalar, CpuCapability::avx2, CpuCapability::avx512,
        CpuCapability::avx512_bf16, CpuCapability::amx}) {
    if (std::strcmp(wanted, name_of(capability)) != 0) continue;
    if (capability <= supported) {
      if (capability != CpuCapability::amx || get_tiles()) return capability;
      throw std::runtime_error(std::string("lazyllm: ") + kVariable +
                               ": expected at most avx512_bf16, since the system refuses this "
                               "process the registers of amx, got amx");
    }
    throw std::runtime_error(std::string("lazyllm: ") + kVariable + ": expected at most " +
                             name_of(supported) + ", which this processor has, got " + wanted);
  }
  throw std::runtime_error(std::string("lazyllm: ") + kVariable +
                           ": expected scalar, avx2, avx512, avx512_bf16 or amx, got " + wanted);
}

}  // namespace

const char* name_of(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::amx:
      return "amx";
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
    if (!__builtin_cpu_supports("avx512bf16")) return CpuCapability::avx512;
    return has_amx() ? CpuCapability::amx : CpuCapability::avx512_bf16;
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
