// How much work a thread of its own is worth.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lazyllm {

// Copies of fewer bytes than this are not worth waking a thread: about 10 us of one core's bandwidth,
// which is what a wake-up takes.
constexpr int64_t kCopyGrainBytes = 128 * 1024;

// parallel_for's grain for items of `bytes` to copy.
inline int64_t copy_grain(int64_t bytes) {
  return std::max<int64_t>(1, kCopyGrainBytes / std::max<int64_t>(1, bytes));
}

}  // namespace lazyllm
