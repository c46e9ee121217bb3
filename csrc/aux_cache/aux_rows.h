// aux_gather, aux_scatter_: rows out of and into the Aux Cache, or any other row-wise tensor.
//
//   aux_gather(source [N, ...], index [R]) -> [R, ...], contiguous:
//       result[r] = source[index[r]], zeros where index[r] is -1; an index may repeat
//   aux_scatter_(destination [N, ...], index [R], rows [R, ...]):
//       destination[index[r]] = rows[r], -1 is skipped; indices must be distinct (not checked)
//
// float32, bfloat16, float16 or int64. Dimensions from 1 on must be contiguous in every row; any
// stride in dimension 0. Rows are copied bit by bit, NaN included. `rows` must not overlap
// `destination`. Empty input is legal. Deterministic.
#pragma once

#include "../common/operator.h"

namespace lazyllm {

// One direction of copying: to[t] = from[f] where one of t, f is index[r] and the other is r.
struct AuxRowsParams {
  const char* from;      // aux_gather: source; aux_scatter_: rows
  char* to;              // aux_gather: the result; aux_scatter_: destination
  const int64_t* index;  // [count], -1 unused
  int64_t count;         // R
  int64_t num_stored;    // N, rows of the indexed tensor
  int64_t row_bytes;
  int64_t from_stride;  // in bytes
  int64_t to_stride;    // in bytes
  int32_t device = kCpu;
};

extern Operator* const aux_gather_operator;
extern Operator* const aux_scatter_operator;

void aux_gather_cpu(const AuxRowsParams& params);
void aux_gather_cuda(const AuxRowsParams& params);
void aux_scatter_cpu(const AuxRowsParams& params);
void aux_scatter_cuda(const AuxRowsParams& params);

}  // namespace lazyllm
