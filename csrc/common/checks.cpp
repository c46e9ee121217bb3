#include "checks.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <sstream>
#include <stdexcept>

#include "values.h"

#if defined(__ELF__)
// Whether a tensor asks for gradients is not in LibTorch's stable C interface of 2.10, so this one
// question goes to libc10, where AtenTensorHandle points to a tensor, which is a pointer to its
// TensorImpl. Weak: a libtorch without this function answers no.
extern "C" __attribute__((weak)) bool lazyllm_tensor_requires_grad(const void* tensor_impl) __asm__(
    "_ZNK3c1010TensorImpl13requires_gradEv");
#endif

namespace lazyllm {
namespace {

bool requires_grad(const Tensor& tensor) {
#if defined(__ELF__)
  if (lazyllm_tensor_requires_grad != nullptr) {
    return lazyllm_tensor_requires_grad(*reinterpret_cast<void* const*>(tensor.get()));
  }
#endif
  return false;
}

std::string name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

bool is_float(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

std::string name_of(const torch::stable::Device& device) {
  if (device.is_cpu()) return "cpu";
  const std::string index = std::to_string(device.index());
  return device.is_cuda() ? "cuda:" + index
                          : "a device of type " + std::to_string(static_cast<int>(device.type()));
}

std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    text += (dim ? ", " : "") + std::to_string(tensor.size(dim));
  }
  return text + "]";
}

template <class T>
std::string text_of(T value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

}  // namespace

Checks::Checks(const char* op, const Tensor& first)
    : op_(op), device_(first.device()), grad_mode_(aoti_torch_grad_mode_is_enabled()) {}

void Checks::refuse(const char* argument, const std::string& expected,
                    const std::string& got) const {
  lazyllm::refuse(op_, argument, expected, got);
}

void Checks::dims(const char* argument, const Tensor& tensor, int64_t dims) const {
  if (tensor.dim() != dims) {
    refuse(argument, std::to_string(dims) + (dims == 1 ? " dimension" : " dimensions"),
           "shape " + shape_of(tensor));
  }
}

void Checks::same_device(const char* argument, const Tensor& tensor) const {
  const torch::stable::Device device = tensor.device();
  if (device != device_) refuse(argument, name_of(device_), name_of(device));
}

void Checks::no_gradient(const char* argument, const Tensor& tensor) const {
  if (grad_mode_ && requires_grad(tensor)) {
    throw std::runtime_error(std::string("lazyllm::") + op_ + ": inference only: " + argument +
                             " requires grad; call it under torch.no_grad()");
  }
}

void Checks::dtype(const char* argument, const Tensor& tensor, ScalarType expected) const {
  const ScalarType dtype = tensor.scalar_type();
  if (dtype != expected) refuse(argument, name_of(expected), name_of(dtype));
}

void Checks::floats(const char* argument, const Tensor& tensor, int64_t dims) const {
  const ScalarType dtype = tensor.scalar_type();
  if (!is_float(dtype)) refuse(argument, "float32, bfloat16 or float16", name_of(dtype));
  floats(argument, tensor, dims, dtype);
}

void Checks::floats(const char* argument, const Tensor& tensor, int64_t dims,
                    ScalarType expected) const {
  dtype(argument, tensor, expected);
  this->dims(argument, tensor, dims);
  same_device(argument, tensor);
  if (tensor.size(dims - 1) > 1 && tensor.stride(dims - 1) != 1) {
    refuse(argument, "stride 1 in the last dimension", text_of(tensor.stride(dims - 1)));
  }
  no_gradient(argument, tensor);
}

void Checks::rows(const char* argument, const Tensor& tensor) const {
  const ScalarType dtype = tensor.scalar_type();
  if (!is_float(dtype) && dtype != ScalarType::Long) {
    refuse(argument, "float32, bfloat16, float16 or int64", name_of(dtype));
  }
  if (tensor.dim() < 1) refuse(argument, "at least 1 dimension", "a scalar");
  same_device(argument, tensor);
  int64_t contiguous = 1;
  for (int64_t dim = tensor.dim() - 1; dim > 0; --dim) {
    const int64_t size = tensor.size(dim);
    if (size == 0) break;
    if (size > 1 && tensor.stride(dim) != contiguous) {
      refuse(argument,
             "contiguous rows, stride " + text_of(contiguous) + " in dimension " + text_of(dim),
             text_of(tensor.stride(dim)));
    }
    contiguous *= size;
  }
  if (dtype != ScalarType::Long) no_gradient(argument, tensor);
}

void Checks::index(const char* argument, const Tensor& tensor, int64_t size) const {
  dtype(argument, tensor, ScalarType::Long);
  dims(argument, tensor, 1);
  same_device(argument, tensor);
  if (size >= 0) this->size(argument, tensor, 0, size);
  if (tensor.size(0) > 1 && tensor.stride(0) != 1) {
    refuse(argument, "a contiguous tensor", "stride " + text_of(tensor.stride(0)));
  }
}

void Checks::size(const char* argument, const Tensor& tensor, int64_t dim, int64_t expected) const {
  const int64_t size = tensor.size(dim);
  if (size != expected) {
    refuse(argument, "size " + text_of(expected) + " in dimension " + text_of(dim),
           "shape " + shape_of(tensor));
  }
}

void Checks::sizes(const char* argument, const Tensor& tensor, const Tensor& like,
                   int64_t first_dim) const {
  for (int64_t dim = first_dim; dim < like.dim(); ++dim) {
    size(argument, tensor, dim, like.size(dim));
  }
}

void Checks::at_least(const char* argument, int64_t value, int64_t least) const {
  if (value < least) refuse(argument, "at least " + text_of(least), text_of(value));
}

void Checks::at_least(const char* argument, double value, double least) const {
  if (!(value >= least)) refuse(argument, "at least " + text_of(least), text_of(value));
}

}  // namespace lazyllm
