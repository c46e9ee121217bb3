// What the launchers ask of tensors: scratch, alignment, the device's name of an element type.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "../common/checks.h"
#include "numeric.cuh"

namespace lazyllm::cuda {

template <typename T>
struct DeviceTypeOf {
  using type = T;
};
template <>
struct DeviceTypeOf<Half> {
  using type = __half;
};
template <>
struct DeviceTypeOf<BFloat16> {
  using type = __nv_bfloat16;
};

/// The type of CUDA's own headers for an element type of torch's.
template <typename T>
using DeviceType = typename DeviceTypeOf<T>::type;

/// Scratch of one call on the device of `like`: `count` words of 4 bytes, uninitialized, aligned to
/// any vector. It comes from torch's allocator in stream order, so a CUDA graph can hold it.
inline torch::stable::Tensor new_words(const torch::stable::Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, ScalarType::Float);
}

/// The widest head that a block's shared memory and registers are laid out for.
inline void check_head_dim(const Checks& check, int64_t head_dim) {
  constexpr int64_t kMostHeadDim = 256;
  if (head_dim > kMostHeadDim) {
    check.refuse("query", "a head_dim of at most 256 on CUDA", std::to_string(head_dim));
  }
}

/// Whether everything is a multiple of `bytes`: addresses, and strides and widths in bytes.
inline bool divisible(int64_t bytes, std::initializer_list<const void*> addresses,
                      std::initializer_list<int64_t> sizes) {
  for (const void* address : addresses) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) return false;
  }
  for (const int64_t size : sizes) {
    if (size % bytes != 0) return false;
  }
  return true;
}

/// Whether rows of `head_dim` elements can be read in packs of 16 bytes. strides: in elements.
template <typename T>
bool in_packs(int64_t head_dim, std::initializer_list<const void*> addresses,
              std::initializer_list<int64_t> strides) {
  return head_dim % kPack<T> == 0 && divisible(16, addresses, {}) &&
         divisible(kPack<T>, {}, strides);
}

}  // namespace lazyllm::cuda
