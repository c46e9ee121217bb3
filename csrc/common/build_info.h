// What the operator library was built with, and what it runs with. Exported, so that the Python
// module _C and C++ programs ask the library that is loaded.
#pragma once

#define LAZYLLM_EXPORT extern "C" __attribute__((visibility("default")))

// The project's version.
LAZYLLM_EXPORT const char* lazyllm_version();
// The LibTorch whose headers were used; the library runs with that of 2.10 and all later ones.
LAZYLLM_EXPORT const char* lazyllm_torch_version();
// As in TORCH_CUDA_ARCH_LIST, "8.0;9.0+PTX"; empty if built without CUDA.
LAZYLLM_EXPORT const char* lazyllm_cuda_architectures();
// "scalar", "avx2", "avx512", "avx512_bf16" or "amx": what this processor can run, and what runs. The
// latter throws std::runtime_error if LAZYLLM_CPU_CAPABILITY is wrong.
LAZYLLM_EXPORT const char* lazyllm_supported_cpu_capability();
LAZYLLM_EXPORT const char* lazyllm_cpu_capability();
