#include "gated_activation.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace lazyllm {
namespace {

Tensor gated_activation(const Tensor& gate, const Tensor& up, std::string activation) {
  const Checks check("gated_activation", gate);
  check.floats("gate", gate, 2);
  check.floats("up", up, 2, gate.scalar_type());
  check.sizes("up", up, gate);
  const Activation activated = check_activation(check, activation);
  Tensor output = torch::stable::new_empty(gate, gate.sizes());
  run<gated_activation_cpu, gated_activation_cuda>(GatedActivationParams{
      .gate = gate.const_data_ptr(),
      .up = up.const_data_ptr(),
      .output = output.mutable_data_ptr(),
      .rows = gate.size(0),
      .inner = gate.size(1),
      .gate_stride = gate.stride(0),
      .up_stride = up.stride(0),
      .activation = activated,
      .dtype = gate.scalar_type(),
      .device = check.device(),
  });
  return output;
}

}  // namespace

Activation check_activation(const Checks& check, const std::string& activation) {
  if (activation != "silu" && activation != "gelu_tanh") {
    check.refuse("activation", "silu or gelu_tanh", activation);
  }
  return activation == "silu" ? Activation::silu : Activation::gelu_tanh;
}

constinit Operator* const gated_activation_operator = TORCH_BOX(&gated_activation);

}  // namespace lazyllm
