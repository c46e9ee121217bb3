// The parts of linear on the CPU: kernels that know no torch, one set for each instruction set and
// dtype.
#pragma once

#include "linear.h"

namespace lazyllm {

// One way to multiply: with vectors, or with the tiles of AMX.
struct LinearWay {
  int64_t columns;  // that are computed together: rows of the weights that are read together

  // Floats of all rows packed, and of a task's scratch for `columns` columns.
  int64_t (*packed_floats)(const LinearParams& params);
  int64_t (*scratch_floats)(const LinearParams& params, int64_t columns);
  // params.x -> packed.
  void (*pack_rows)(const LinearParams& params, float* packed);
  // Columns begin .. end - 1 of the output.
  void (*multiply)(const LinearParams& params, const float* packed, int64_t begin, int64_t end,
                   float* scratch);
};

struct LinearKernels {
  LinearWay vectors;
  LinearWay tiles;
  bool (*fits_tiles)(const LinearParams& params);
};

// Projections of the same rows: parts[0 .. count - 1], whose x, rows, in and dtype are equal. Their
// outputs are given; the rows are packed and the threads woken once.
void multiply_rows(const LinearParams* parts, int64_t count);

}  // namespace lazyllm
