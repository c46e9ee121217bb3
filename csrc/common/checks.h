// What the operators ask of the tensors and numbers they are called with. CPU and CUDA share these
// checks and their words, see values.h.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

#include "operator.h"

namespace lazyllm {

using torch::stable::Tensor;

// Checks the arguments of one call, but for what the tensors hold.
class Checks {
 public:
  // All tensors have to be on the device of `first`.
  Checks(const char* op, const Tensor& first);

  // The device's number, or kCpu.
  int32_t device() const { return device_.is_cuda() ? device_.index() : kCpu; }

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
  // From dimension `first_dim` on those of `like`, which has as many dimensions.
  void sizes(const char* argument, const Tensor& tensor, const Tensor& like,
             int64_t first_dim = 0) const;
  void at_least(const char* argument, int64_t value, int64_t least) const;
  void at_least(const char* argument, double value, double least) const;  // refuses NaN

 private:
  void dims(const char* argument, const Tensor& tensor, int64_t dims) const;
  void same_device(const char* argument, const Tensor& tensor) const;
  void no_gradient(const char* argument, const Tensor& tensor) const;

  const char* op_;
  torch::stable::Device device_;
  bool grad_mode_;
};

}  // namespace lazyllm
