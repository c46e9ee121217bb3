// The checks of gated_activation that CPU and CUDA share.
#include "gated_activation.h"

namespace lazyllm {

Activation check_activation(const Checks& check, const std::string& activation) {
  if (activation != "silu" && activation != "gelu_tanh") {
    check.refuse("activation", "silu or gelu_tanh", activation);
  }
  return activation == "silu" ? Activation::silu : Activation::gelu_tanh;
}

GateParams check_gated_activation(const Checks& check, const Tensor& gate, const Tensor& up,
                                  const std::string& activation) {
  check.floats("gate", gate, 2);
  check.floats("up", up, 2, gate.scalar_type());
  check.size("up", up, 0, gate.size(0));
  check.size("up", up, 1, gate.size(1));
  return {
      .gate = gate.const_data_ptr(),
      .up = up.const_data_ptr(),
      .output = nullptr,
      .rows = gate.size(0),
      .inner = gate.size(1),
      .gate_stride = gate.stride(0),
      .up_stride = up.stride(0),
      .activation = check_activation(check, activation),
      .dtype = gate.scalar_type(),
  };
}

}  // namespace lazyllm
