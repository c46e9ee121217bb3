// The Python module lazyllm_ext._C: what the operator library says about itself.

#include <pybind11/pybind11.h>

#include "common/build_info.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "What the operators were built with, and which CPU instruction set they use.";
  module.def("version", &lazyllm_version, "The project's version.");
  module.def("torch_version", &lazyllm_torch_version,
             "The LibTorch whose headers the operators were compiled with.");
  module.def("cuda_architectures", &lazyllm_cuda_architectures,
             "The compiled CUDA architectures, such as '8.0;9.0+PTX'; '' without CUDA.");
  module.def(
      "supported_cpu_capability", &lazyllm_supported_cpu_capability,
      "'scalar', 'avx2', 'avx512', 'avx512_bf16' or 'amx': the best this processor can run.");
  module.def("cpu_capability", &lazyllm_cpu_capability,
             "The one in use. RuntimeError if LAZYLLM_CPU_CAPABILITY is wrong.");
}
