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

LinearKernels linear_kernels(ScalarType dtype) {
  LinearKernels kernels;
  visit_float(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    LAZYLLM_CALL_KERNEL(fill_kernels<T>(kernels));
  });
  return kernels;
}

}  // namespace

void multiply_rows(const LinearParams* parts, int64_t count) {
  const LinearParams& p = parts[0];
  const LinearKernels kernels = linear_kernels(p.dtype);
  const int64_t step = kernels.width * kernels.per_word;
  const int64_t padded = (p.in + step - 1) / step * kernels.width;
  const Scratch rows(p.rows * padded + 1);
  kernels.pack_rows(p, padded, rows.data());

  const int64_t weight_bytes = std::max<int64_t>(1, p.in * (p.dtype == ScalarType::Float ? 4 : 2));
  const int64_t columns =
      std::max<int64_t>(kLinearTile, kTaskBytes / weight_bytes / kLinearTile * kLinearTile);
  const auto tasks_of = [&](const LinearParams& part) {
    return (part.out + columns - 1) / columns;
  };
  int64_t tasks = 0, all_columns = 0;
  for (int64_t i = 0; i < count; ++i) {
    tasks += tasks_of(parts[i]);
    all_columns += parts[i].out;
  }
  run_tasks(tasks, p.rows * (columns + kernels.width), all_columns > columns,
            [&](int64_t task, float* scratch) {
              const LinearParams* part = parts;
              for (; task >= tasks_of(*part); ++part) task -= tasks_of(*part);
              const int64_t begin = task * columns;
              kernels.multiply(*part, padded, rows.data(), begin,
                               std::min(begin + columns, part->out), scratch);
            });
}

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const Checks check("linear", x);
  LinearParams p = check_linear(check, x, weight, bias);
  Tensor output = torch::stable::new_empty(x, {p.rows, p.out});
  p.output = output.mutable_data_ptr();
  if (p.rows > 0 && p.out > 0) multiply_rows(&p, 1);
  return output;
}

}  // namespace lazyllm
