// The instruction set that CPU kernels run with.
#pragma once

namespace lazyllm {

enum class CpuCapability { scalar, avx2, avx512, avx512_bf16, amx };

// "scalar", "avx2", "avx512", "avx512_bf16", "amx"
const char* name_of(CpuCapability capability);

// The best one that this processor has and this library was compiled for.
CpuCapability supported_cpu_capability();

// The one in use: the best, or what LAZYLLM_CPU_CAPABILITY names. Read once; throws if the variable
// names none or one that this processor lacks.
CpuCapability cpu_capability();

}  // namespace lazyllm
