// Tasks of unequal cost over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "scratch.h"

namespace lazyllm {

// Runs task(i, scratch) for i = 0 .. count - 1. A thread that is done with one takes the next, so
// put the expensive ones first. Which thread runs a task must not change its result. Each thread has
// `scratch_floats` of memory of its own.
template <class Task>
void run_tasks(int64_t count, int64_t scratch_floats, bool parallel, const Task& task) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    const Scratch scratch(scratch_floats);
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      task(i, scratch.data());
    }
  };
  if (!parallel || count < 2) {
    work(0, 1);
    return;
  }
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, std::min(threads, count), 1, work);
}

}  // namespace lazyllm
