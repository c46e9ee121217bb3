#include "build_info.h"

#include <torch/headeronly/version.h>

#include "capability.h"

const char* lazyllm_version() { return LAZYLLM_VERSION; }

const char* lazyllm_torch_version() { return TORCH_VERSION; }

const char* lazyllm_cuda_architectures() { return LAZYLLM_CUDA_ARCHITECTURES; }

const char* lazyllm_supported_cpu_capability() {
  return lazyllm::name_of(lazyllm::supported_cpu_capability());
}

const char* lazyllm_cpu_capability() { return lazyllm::name_of(lazyllm::cpu_capability()); }
