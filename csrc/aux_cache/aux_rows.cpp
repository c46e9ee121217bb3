#include "aux_rows.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../common/checks.h"

namespace lazyllm {
namespace {

int64_t row_bytes_of(const Tensor& tensor) {
  int64_t bytes = static_cast<int64_t>(tensor.element_size());
  for (int64_t dim = 1; dim < tensor.dim(); ++dim) bytes *= tensor.size(dim);
  return bytes;
}

int64_t stride_bytes_of(const Tensor& tensor) {
  return tensor.stride(0) * static_cast<int64_t>(tensor.element_size());
}

// Rows of `from` to rows of `to`; `stored` is the one of them that is indexed.
AuxRowsParams params_of(const Checks& check, const Tensor& from, Tensor& to, const Tensor& index,
                        const Tensor& stored) {
  return {
      .from = static_cast<const char*>(from.const_data_ptr()),
      .to = static_cast<char*>(to.mutable_data_ptr()),
      .index = index.const_data_ptr<int64_t>(),
      .count = index.size(0),
      .num_stored = stored.size(0),
      .row_bytes = row_bytes_of(stored),
      .from_stride = stride_bytes_of(from),
      .to_stride = stride_bytes_of(to),
      .device = check.device(),
  };
}

Tensor aux_gather(const Tensor& source, const Tensor& index) {
  const Checks check("aux_gather", source);
  check.rows("source", source);
  check.index("index", index);
  std::vector<int64_t> sizes(source.sizes().begin(), source.sizes().end());
  sizes[0] = index.size(0);
  Tensor result = torch::stable::new_empty(source, sizes);
  run<aux_gather_cpu, aux_gather_cuda>(params_of(check, source, result, index, source));
  return result;
}

void aux_scatter(Tensor destination, const Tensor& index, const Tensor& rows) {
  const Checks check("aux_scatter_", destination);
  check.rows("destination", destination);
  check.index("index", index);
  check.dtype("rows", rows, destination.scalar_type());
  if (rows.dim() != destination.dim()) {
    check.refuse("rows", std::to_string(destination.dim()) + " dimensions",
                 std::to_string(rows.dim()));
  }
  check.rows("rows", rows);
  check.size("rows", rows, 0, index.size(0));
  check.sizes("rows", rows, destination, 1);
  run<aux_scatter_cpu, aux_scatter_cuda>(params_of(check, rows, destination, index, destination));
}

}  // namespace

constinit Operator* const aux_gather_operator = TORCH_BOX(&aux_gather);
constinit Operator* const aux_scatter_operator = TORCH_BOX(&aux_scatter);

}  // namespace lazyllm
