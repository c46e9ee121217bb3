// decoder_layer_: one whole decoder layer for few rows, as a step of decoding has them. What it is made
// of are the other operators' kernels; it saves what stands between them, a dispatch, a tensor and
// a return to Python for each. CPU only: on a GPU a captured graph saves the same.
//
//   x       = rms_norm(hidden, input_norm)
//   query, key, value = rotate(head_norm(x . q^T + q_bias)), rotate(head_norm(x . k^T + k_bias)),
//             x . v^T + v_bias;  key and value go to slots of the stores
//   hidden += out_norm(lazy_attention(query, the stores) . o^T + o_bias)
//   x       = rms_norm(hidden, mlp_norm)
//   hidden += out_norm((activation(x . gate^T) * (x . up^T)) . down^T)
//
//   hidden [R, C] float -> [R, C], contiguous, of its dtype; hidden itself stays as it is. Rows whose
//   query_index is -1 are unused: nothing is computed or stored for them, and they come out as they
//   went in
//   key_store, value_store, slots: as in kv_append_; query_index .. key_offsets: as in lazy_attention,
//   with R rows; cos, sin [R, half], interleaved: as in rotate
//   weights: input_norm [C], q [H D, C], k, v [Hkv D, C], o [C, H D], mlp_norm [C], gate, up [I, C],
//   down [C, I]
//   optional, each of which may be missing: q_bias, k_bias, v_bias, o_bias; q_norm, k_norm [D], over
//   each head before it is rotated; attention_out_norm, mlp_out_norm [C]
//   eps, offset: of all norms, as in rms_norm; activation: "silu" or "gelu_tanh"
//
// All float of one dtype; every part rounds where the operator of its own would, sums are taken in
// float32. The last dimensions must have stride 1, other strides are honoured. NaN as in the parts.
// Empty input is legal. The stores must not overlap with anything else. Deterministic; a sequence
// gives in a batch what it gives alone, as far as the rows of linear do.
#pragma once

#include "../attention/lazy_attention.h"
#include "../gate/gated_activation.h"
#include "../kv_append/kv_append.h"
#include "../linear/linear.h"
#include "../norm/rms_norm.h"
#include "../rotary/rotate.h"

namespace lazyllm {

// The operators that the layer is made of have here what its arguments say of them; what they hand to
// each other, and for how many rows, is left to the layer.
struct DecoderLayerParams {
  const void* hidden;  // [rows, channels]
  void* output;        // [rows, channels], contiguous
  int64_t rows;
  int64_t channels;
  int64_t hidden_stride;  // in elements
  LinearParams q, k, v, o, gate, up, down;
  RmsNormParams input_norm, mlp_norm;
  RmsNormParams q_norm, k_norm, attention_out_norm, mlp_out_norm;  // or with a weight that is null
  RotateParams rotary;
  KvAppendParams append;
  LazyAttentionParams attention;
  Activation activation;
  ScalarType dtype;
};

extern Operator* const decoder_layer_operator;

void decoder_layer_cpu(const DecoderLayerParams& params);

}  // namespace lazyllm
