// The checks of aux_gather and aux_scatter_ that CPU and CUDA share.
#include "aux_rows.h"

#include <torch/csrc/stable/ops.h>

#include <vector>

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

}  // namespace

AuxRowsParams check_aux_gather(const Checks& check, const Tensor& source, const Tensor& index) {
  check.rows("source", source);
  check.index("index", index);
  const int64_t row_bytes = row_bytes_of(source);
  return {
      .from = static_cast<const char*>(source.const_data_ptr()),
      .to = nullptr,
      .index = index.const_data_ptr<int64_t>(),
      .count = index.size(0),
      .num_stored = source.size(0),
      .row_bytes = row_bytes,
      .from_stride = stride_bytes_of(source),
      .to_stride = row_bytes,
  };
}

AuxRowsParams check_aux_scatter(const Checks& check, const Tensor& destination, const Tensor& index,
                                const Tensor& rows) {
  check.rows("destination", destination);
  check.index("index", index);
  check.dtype("rows", rows, destination.scalar_type());
  if (rows.dim() != destination.dim()) {
    check.refuse("rows", std::to_string(destination.dim()) + " dimensions",
                 std::to_string(rows.dim()));
  }
  check.rows("rows", rows);
  check.size("rows", rows, 0, index.size(0));
  for (int64_t dim = 1; dim < rows.dim(); ++dim) {
    check.size("rows", rows, dim, destination.size(dim));
  }
  return {
      .from = static_cast<const char*>(rows.const_data_ptr()),
      .to = static_cast<char*>(destination.mutable_data_ptr()),
      .index = index.const_data_ptr<int64_t>(),
      .count = index.size(0),
      .num_stored = destination.size(0),
      .row_bytes = row_bytes_of(destination),
      .from_stride = stride_bytes_of(rows),
      .to_stride = stride_bytes_of(destination),
  };
}

Tensor new_aux_rows(const Tensor& source, const Tensor& index) {
  std::vector<int64_t> sizes(source.sizes().begin(), source.sizes().end());
  sizes[0] = index.size(0);
  return torch::stable::new_empty(source, sizes);
}

}  // namespace lazyllm
