// What the launchers ask of an operator's arguments: element type, head size, alignment.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "../common/types.h"
#include "../common/values.h"
#include "numeric.cuh"

namespace lazyllm::cuda {

/// visitor(an element of the type that CUDA's own headers have for a float dtype), which has been
/// checked before.
template <typename Visitor>
void visit_element(ScalarType dtype, Visitor visitor) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return visitor(__nv_bfloat16{});
    case ScalarType::Half:
      return visitor(__half{});
    default:
      return visitor(0.0f);
  }
}

/// The widest head that a block's shared memory and registers are laid out for.
inline void check_head_dim(const char* op, int64_t head_dim) {
  constexpr int64_t kMostHeadDim = 256;
  if (head_dim > kMostHeadDim) {
    refuse(op, "query", "a head_dim of at most 256 on CUDA", std::to_string(head_dim));
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
