// Rows of bytes, copied in the widest words that their addresses, strides and lengths allow.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

#include "arguments.cuh"

namespace lazyllm::cuda {

constexpr int kCopyThreads = 256;
constexpr int kWordsUnderWay = 4;  // of one thread

/// Calls visitor(word of 16, 8, 4 or 2 bytes): the widest one that divides everything given.
/// No dtype of the operators is narrower than 2 bytes. sizes: strides and lengths, in bytes.
template <typename Visitor>
void visit_word(std::initializer_list<const void*> addresses, std::initializer_list<int64_t> sizes,
                Visitor visitor) {
  if (divisible(16, addresses, sizes)) {
    visitor(uint4{});
  } else if (divisible(8, addresses, sizes)) {
    visitor(uint2{});
  } else if (divisible(4, addresses, sizes)) {
    visitor(static_cast<unsigned int>(0));
  } else {
    visitor(static_cast<unsigned short>(0));
  }
}

/// A block for rows of `words` words: x threads share a row, y rows share the block.
inline dim3 copy_block(int64_t words) {
  unsigned x = 1;
  while (x < kCopyThreads && x * kWordsUnderWay < words) x *= 2;
  return {x, kCopyThreads / x, 1};
}

/// One row, by the x threads of a block. from, to: word number -> address. The words of a thread
/// are all read before the first is written, to have them under way together.
template <typename Word, typename From, typename To>
__device__ __forceinline__ void copy_row(int64_t words, From from, To to) {
  const int64_t stride = blockDim.x;
  for (int64_t first = threadIdx.x; first < words; first += stride * kWordsUnderWay) {
    Word word[kWordsUnderWay];
#pragma unroll
    for (int i = 0; i < kWordsUnderWay; ++i) {
      if (first + i * stride < words) word[i] = __ldg(from(first + i * stride));
    }
#pragma unroll
    for (int i = 0; i < kWordsUnderWay; ++i) {
      if (first + i * stride < words) *to(first + i * stride) = word[i];
    }
  }
}

}  // namespace lazyllm::cuda
