// What the operators say about a wrong argument. CPU and CUDA share these checks and their words:
//   lazyllm::<op>: <argument>: expected <this>, got <that>
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

#include "types.h"

namespace lazyllm {

using torch::stable::Tensor;

// Checks the arguments of one call. What the tensors hold is looked at by the *_values functions
// only, which CPU operators call: on a GPU that would wait for the device.
class Checks {
 public:
  // All tensors have to be on the device of `first`.
  Checks(const char* op, const Tensor& first);

  [[noreturn]] void refuse(const char* argument, const std::string& expected,
                           const std::string& got) const;

  // float32, bfloat16 or float16 of `dims` dimensions, last one with stride 1, no gradient asked.
  void floats(const char* argument, const Tensor& tensor, int64_t dims) const;
  // The same, of exactly this dtype.
  void floats(const char* argument, const Tensor& tensor, int64_t dims, ScalarType dtype) const;
  // Rows [N, ...] that are contiguous each; a float dtype or int64; at least one dimension.
  void rows(const char* argument, const Tensor& tensor) const;
  // int64 [size], contiguous; size -1 is any.
  void index(const char* argument, const Tensor& tensor, int64_t size = -1) const;

  void dtype(const char* argument, const Tensor& tensor, ScalarType expected) const;
  void size(const char* argument, const Tensor& tensor, int64_t dim, int64_t expected) const;
  void at_least(const char* argument, int64_t value, int64_t least) const;
  void at_least(const char* argument, double value, double least) const;  // refuses NaN

  // CPU: offsets[0] == 0, none smaller than the one before, offsets[batch] == end.
  void offset_values(const char* argument, const int64_t* offsets, int64_t batch,
                     int64_t end) const;
  // CPU: -1 <= index[i] < limit.
  void index_values(const char* argument, const int64_t* index, int64_t count, int64_t limit) const;

 private:
  void dims(const char* argument, const Tensor& tensor, int64_t dims) const;
  void device(const char* argument, const Tensor& tensor) const;
  void no_gradient(const char* argument, const Tensor& tensor) const;

  const char* op_;
  torch::stable::Device device_;
  bool grad_mode_;
};

}  // namespace lazyllm
