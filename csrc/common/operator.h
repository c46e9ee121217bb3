// What stands between torch's dispatcher and an operator's kernels.
//
//   library.cpp     schema, and the boxed <op>_operator for each device
//   <op>.cpp        Tensors: checks them, allocates the result, fills <Op>Params and calls run()
//   <op>_cpu.cpp    <op>_cpu(const <Op>Params&)
//   <op>_cuda.cu    <op>_cuda(const <Op>Params&), left out of a build without CUDA
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>

#include "types.h"

namespace lazyllm {

// An operator as the dispatcher calls it, its arguments and results on a stack. TORCH_BOX makes one.
using Operator = void(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);

// The `device` of Params in the CPU's memory; any other is the number of a CUDA device.
constexpr int32_t kCpu = -1;

#ifdef LAZYLLM_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// Computes on the device of `params`. Without CUDA nothing refers to the entry for it, which then
// does not exist.
template <auto cpu, auto cuda, class Params>
void run(const Params& params) {
  if constexpr (kWithCuda) {
    if (params.device != kCpu) return cuda(params);
  }
  cpu(params);
}

}  // namespace lazyllm
