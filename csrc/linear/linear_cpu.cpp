#include "linear_cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../cpu/scratch.h"
#include "../cpu/tasks.h"

#define LAZYLLM_KERNEL "../linear/linear_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {
namespace {

// A task's weights, and from how many on threads are woken: 10 to 20 us of one core's bandwidth.
constexpr int64_t kTaskBytes = 128 * 1024;

}  // namespace

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const Checks check("linear", x);
  LinearParams p = check_linear(check, x, weight, bias);
  Tensor output = torch::stable::new_empty(x, {p.rows, p.out});
  p.output = output.mutable_data_ptr();
  if (p.rows == 0 || p.out == 0) return output;

  LinearKernels kernels;
  visit_float(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    LAZYLLM_CALL_KERNEL(fill_kernels<T>(kernels));
  });
  const int64_t step = kernels.width * kernels.per_word;
  const int64_t padded = (p.in + step - 1) / step * kernels.width;
  const Scratch rows(p.rows * padded + 1);
  kernels.pack_rows(p, padded, rows.data());

  const int64_t weight_bytes =
      std::max<int64_t>(1, p.in * static_cast<int64_t>(weight.element_size()));
  const int64_t columns =
      std::max<int64_t>(kLinearTile, kTaskBytes / weight_bytes / kLinearTile * kLinearTile);
  const int64_t tasks = (p.out + columns - 1) / columns;
  run_tasks(
      tasks, p.rows * (columns + kernels.width), tasks > 1, [&](int64_t task, float* scratch) {
        const int64_t begin = task * columns;
        kernels.multiply(p, padded, rows.data(), begin, std::min(begin + columns, p.out), scratch);
      });
  return output;
}

}  // namespace lazyllm
