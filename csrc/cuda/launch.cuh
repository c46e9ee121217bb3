// How the host side of every CUDA operator reaches the device: stream, launch, memory, errors. Nothing
// else calls the CUDA runtime or torch.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "lazyllm-ext: the CUDA kernels need compute capability 8.0 or newer (TORCH_CUDA_ARCH_LIST)"
#endif

// A CPU build of torch lacks this symbol. Weak, so that the library loads beside one all the same.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

/// Throws what the CUDA runtime says, in the words of the operators' other errors. torch's own
/// check macro calls a symbol that CPU builds of torch do not have.
#define LAZYLLM_CUDA_CHECK(op, call)                                                   \
  do {                                                                                 \
    const cudaError_t lazyllm_status = (call);                                         \
    if (lazyllm_status != cudaSuccess) {                                               \
      throw std::runtime_error(std::string("lazyllm::") + (op) +                       \
                               ": CUDA error: " + cudaGetErrorString(lazyllm_status)); \
    }                                                                                  \
  } while (false)

namespace lazyllm::cuda {

/// Keeps a parameter out of template argument deduction.
template <typename T>
struct NotDeduced {
  using Type = T;
};

/// Blocks of `per_block` items that `count` items need.
inline unsigned num_blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

/// Uninitialized memory for `count` T of 4 bytes or a multiple, aligned to any vector. It comes from
/// torch's allocator in stream order, so a CUDA graph can hold it.
template <typename T>
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(int32_t device_index, int64_t count)
      : words_(torch::stable::empty(
            {count * static_cast<int64_t>(sizeof(T) / sizeof(float))},
            torch::headeronly::ScalarType::Float, std::nullopt,
            torch::stable::Device(torch::headeronly::DeviceType::CUDA, device_index))) {}

  T* data() const { return static_cast<T*>(words_.mutable_data_ptr()); }

 private:
  torch::stable::Tensor words_;
};

/// torch's current stream on a device.
inline cudaStream_t current_stream(const char* op, int32_t device_index) {
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    throw std::runtime_error(std::string("lazyllm::") + op +
                             ": a tensor is on CUDA, but this build of torch has no CUDA");
  }
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(device_index, &stream) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error(std::string("lazyllm::") + op +
                             ": torch has no current CUDA stream for device " +
                             std::to_string(device_index));
  }
  return static_cast<cudaStream_t>(stream);
}

/// Where an operator runs: the device of its tensors, which is the current one while this lives,
/// and torch's stream there.
class Launcher {
 public:
  Launcher(const char* op, int32_t device_index)
      : op_(op),
        device_index_(device_index),
        stream_(current_stream(op, device_index)),
        guard_(device_index) {
    LAZYLLM_CUDA_CHECK(op, cudaDeviceGetAttribute(&num_multiprocessors_,
                                                  cudaDevAttrMultiProcessorCount, device_index));
  }

  /// What a launch shape is fitted to.
  int num_multiprocessors() const { return num_multiprocessors_; }

  /// Memory for `count` T, for as long as what is returned lives.
  template <typename T>
  DeviceMemory<T> allocate(int64_t count) const {
    return DeviceMemory<T>(device_index_, count);
  }

  /// Sets `bytes` bytes from `to` on to `value`; nothing waits for it.
  void fill(void* to, int value, int64_t bytes) const {
    if (bytes > 0) LAZYLLM_CUDA_CHECK(op_, cudaMemsetAsync(to, value, bytes, stream_));
  }

  /// Starts `kernel`; nothing waits for it. An empty grid starts nothing.
  template <typename... Parameters>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
              typename NotDeduced<Parameters>::Type... arguments) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    constexpr size_t kSharedBytesWithoutAsking = 48 * 1024;
    if (shared_bytes > kSharedBytesWithoutAsking) {
      LAZYLLM_CUDA_CHECK(op_, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes)));
    }
    kernel<<<grid, block, shared_bytes, stream_>>>(arguments...);
    LAZYLLM_CUDA_CHECK(op_, cudaGetLastError());
  }

 private:
  const char* op_;
  int32_t device_index_;
  cudaStream_t stream_;
  torch::stable::accelerator::DeviceGuard guard_;
  int num_multiprocessors_ = 0;
};

}  // namespace lazyllm::cuda
