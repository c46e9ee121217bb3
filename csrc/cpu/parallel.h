// Work on many like items, over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace lazyllm {

// Calls work(begin, end) for parts of `count` items of `bytes` to copy each; for none if they are empty.
template <class Work>
void copy_in_parallel(int64_t count, int64_t bytes, const Work& work) {
  // Fewer bytes than this are not worth waking a thread: about 10 us of one core's bandwidth, which is
  // what a wake-up takes.
  constexpr int64_t kGrainBytes = 128 * 1024;
  if (bytes == 0) return;
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrainBytes / bytes), work);
}

}  // namespace lazyllm
