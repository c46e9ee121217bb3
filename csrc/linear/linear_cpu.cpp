#include "linear_cpu.h"

#include <algorithm>

#include "../cpu/scratch.h"
#include "../cpu/tasks.h"

#define LAZYLLM_KERNEL_HAS_TILES
#define LAZYLLM_KERNEL "../linear/linear_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {
namespace {

// A task's weights, and from how many on threads are woken: 10 to 20 us of one core's bandwidth.
constexpr int64_t kTaskBytes = 128 * 1024;

}  // namespace

void multiply_rows(const LinearParams* parts, int64_t count) {
  const LinearParams& p = parts[0];
  if (p.rows == 0) return;
  LinearKernels kernels{};
  LAZYLLM_CALL_TYPED_KERNEL(p.dtype, fill_kernels<T>(kernels));
  const LinearWay way =
      std::all_of(parts, parts + count, kernels.fits_tiles) ? kernels.tiles : kernels.vectors;
  const Scratch packed(way.packed_floats(p));
  way.pack_rows(p, packed.data());

  const int64_t weight_bytes = std::max<int64_t>(1, p.in * element_bytes(p.dtype));
  const int64_t columns =
      std::max<int64_t>(way.columns, kTaskBytes / weight_bytes / way.columns * way.columns);
  const auto tasks_of = [&](const LinearParams& part) {
    return (part.out + columns - 1) / columns;
  };
  int64_t tasks = 0, all_columns = 0;
  for (int64_t i = 0; i < count; ++i) {
    tasks += tasks_of(parts[i]);
    all_columns += parts[i].out;
  }
  run_tasks(tasks, way.scratch_floats(p, columns), all_columns > columns,
            [&](int64_t task, float* scratch) {
              const LinearParams* part = parts;
              for (; task >= tasks_of(*part); ++part) task -= tasks_of(*part);
              const int64_t begin = task * columns;
              way.multiply(*part, packed.data(), begin, std::min(begin + columns, part->out),
                           scratch);
            });
}

void linear_cpu(const LinearParams& p) {
  if (p.out > 0) multiply_rows(&p, 1);
}

}  // namespace lazyllm
