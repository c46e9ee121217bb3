// The element types of the operators, and the way from a tensor's dtype to one of them.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace lazyllm {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

template <class T>
struct Type {
  using type = T;
};

// visitor(Type<float>{} or Type<BFloat16>{} or Type<Half>{}). The dtype has been checked before.
template <class Visitor>
auto visit_float(ScalarType dtype, Visitor&& visitor) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return visitor(Type<BFloat16>{});
    case ScalarType::Half:
      return visitor(Type<Half>{});
    default:
      return visitor(Type<float>{});
  }
}

// Of a float dtype that has been checked before.
inline int64_t element_bytes(ScalarType dtype) { return dtype == ScalarType::Float ? 4 : 2; }

}  // namespace lazyllm
