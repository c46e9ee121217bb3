#include "decoder_layer.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <vector>

namespace lazyllm {
namespace {

using OptionalTensor = std::optional<Tensor>;

// A vector [size], or null.
const void* vector_of(const Checks& check, const char* name, const OptionalTensor& vector,
                      int64_t size, ScalarType dtype) {
  if (!vector.has_value()) return nullptr;
  check.floats(name, *vector, 1, dtype);
  check.size(name, *vector, 0, size);
  return vector->const_data_ptr();
}

// The projections and the norms, for p.channels and stores of these heads.
void fill_weights(const Checks& check, DecoderLayerParams& p, const std::vector<Tensor>& weights,
                  const std::vector<OptionalTensor>& optional, int64_t num_kv_heads,
                  int64_t head_dim, double eps, double offset) {
  const ScalarType dtype = p.dtype;
  const Tensor &q = weights[1], &gate = weights[6];
  check.floats("q", q, 2, dtype);
  if (head_dim == 0 || q.size(0) % head_dim != 0) {
    check.refuse("q", "whole heads of " + std::to_string(head_dim), std::to_string(q.size(0)));
  }
  check.floats("gate", gate, 2, dtype);
  const int64_t channels = p.channels, inner = gate.size(0);
  const int64_t query_width = q.size(0), key_width = num_kv_heads * head_dim;
  const auto linear = [&](const char* name, const Tensor& weight, int64_t out, int64_t in,
                          const char* bias_name = "", const OptionalTensor& bias = {}) {
    check.floats(name, weight, 2, dtype);
    check.size(name, weight, 0, out);
    check.size(name, weight, 1, in);
    LinearParams linear{};
    linear.weight = weight.const_data_ptr();
    linear.bias = vector_of(check, bias_name, bias, out, dtype);
    linear.in = in;
    linear.out = out;
    linear.weight_stride = weight.stride(0);
    linear.dtype = dtype;
    return linear;
  };
  const auto norm = [&](const char* name, const OptionalTensor& weight, int64_t dim) {
    RmsNormParams norm{};
    norm.weight = vector_of(check, name, weight, dim, dtype);
    norm.dim = dim;
    norm.eps = static_cast<float>(eps);
    norm.offset = static_cast<float>(offset);
    norm.dtype = dtype;
    return norm;
  };
  p.q = linear("q", q, query_width, channels, "q_bias", optional[0]);
  p.k = linear("k", weights[2], key_width, channels, "k_bias", optional[1]);
  p.v = linear("v", weights[3], key_width, channels, "v_bias", optional[2]);
  p.o = linear("o", weights[4], channels, query_width, "o_bias", optional[3]);
  p.gate = linear("gate", gate, inner, channels);
  p.up = linear("up", weights[7], inner, channels);
  p.down = linear("down", weights[8], channels, inner);
  p.input_norm = norm("input_norm", weights[0], channels);
  p.mlp_norm = norm("mlp_norm", weights[5], channels);
  p.attention_out_norm = norm("attention_out_norm", optional[6], channels);
  p.mlp_out_norm = norm("mlp_out_norm", optional[7], channels);
  p.q_norm = norm("q_norm", optional[4], head_dim);
  p.k_norm = norm("k_norm", optional[5], head_dim);
}

// Where keys or values go. They come as [rows, num_kv_heads, head_dim], contiguous.
KvAppendSide side_of(const Tensor& store) {
  return {
      .from = nullptr,
      .to = store.mutable_data_ptr(),
      .from_token_stride = store.size(1) * store.size(2),
      .from_head_stride = store.size(2),
      .to_slot_stride = store.stride(0),
      .to_head_stride = store.stride(1),
  };
}

KvAppendParams append_of(const Tensor& hidden, const Tensor& key_store, const Tensor& value_store,
                         const Tensor& slots) {
  const Checks check("kv_append_", hidden);
  check.floats("value_store", value_store, 3, hidden.scalar_type());
  check.sizes("value_store", value_store, key_store);
  return {
      .key = side_of(key_store),
      .value = side_of(value_store),
      .slots = slots.const_data_ptr<int64_t>(),
      .tokens = slots.size(0),
      .num_slots = key_store.size(0),
      .num_kv_heads = key_store.size(1),
      .head_dim = key_store.size(2),
      .element_bytes = element_bytes(hidden.scalar_type()),
  };
}

// What belongs to an operator that the layer is made of is refused in that one's name. Long, since it
// names all that a layer has.
Tensor decoder_layer(const Tensor& hidden, Tensor key_store, Tensor value_store,
                     const Tensor& slots, const Tensor& query_index, const Tensor& query_offsets,
                     const Tensor& key_slots, const Tensor& key_index, const Tensor& key_offsets,
                     const Tensor& cos, const Tensor& sin, std::vector<Tensor> weights,
                     std::vector<OptionalTensor> optional, double eps, double offset, double scale,
                     int64_t window, double softcap, bool interleaved, std::string activation) {
  const Checks check("decoder_layer_", hidden);
  if (weights.size() != 9) check.refuse("weights", "9 tensors", std::to_string(weights.size()));
  if (optional.size() != 8) check.refuse("optional", "8 tensors", std::to_string(optional.size()));
  check.floats("hidden", hidden, 2);
  check.floats("key_store", key_store, 3, hidden.scalar_type());
  const int64_t num_kv_heads = key_store.size(1), head_dim = key_store.size(2);

  DecoderLayerParams p{};
  p.hidden = hidden.const_data_ptr();
  p.rows = hidden.size(0);
  p.channels = hidden.size(1);
  p.hidden_stride = hidden.stride(0);
  p.dtype = hidden.scalar_type();
  fill_weights(check, p, weights, optional, num_kv_heads, head_dim, eps, offset);
  p.activation = check_activation(check, activation);
  check.at_least("eps", eps, 0.0);
  check.index("slots", slots, p.rows);
  check.index("query_index", query_index, p.rows);
  check.index("query_offsets", query_offsets);
  if (query_offsets.size(0) < 1) check.refuse("query_offsets", "at least 1 offset", "none");

  check_rotary(check, cos, sin, p.rows, head_dim, p.dtype);
  p.rotary.cos = cos.const_data_ptr();
  p.rotary.sin = sin.const_data_ptr();
  p.rotary.head_dim = p.rotary.x_head_stride = head_dim;
  p.rotary.half = cos.size(1);
  p.rotary.cos_stride = cos.stride(0);
  p.rotary.sin_stride = sin.stride(0);
  p.rotary.interleaved = interleaved;
  p.rotary.dtype = p.dtype;

  p.append = append_of(hidden, key_store, value_store, slots);

  const Checks check_attention("lazy_attention", hidden);
  const Queries queries = {
      .data = nullptr,
      .index = query_index.const_data_ptr<int64_t>(),
      .offsets = query_offsets.const_data_ptr<int64_t>(),
      .batch = query_offsets.size(0) - 1,
      .rows = p.rows,
      .num_heads = weights[1].size(0) / head_dim,
      .head_dim = head_dim,
      .row_stride = weights[1].size(0),
      .head_stride = head_dim,
      .dtype = p.dtype,
  };
  p.attention = {
      .query = queries,
      .key = check_keys(check_attention, queries, key_store, key_slots, key_index, key_offsets),
      .value = value_store.const_data_ptr(),
      .value_slot_stride = value_store.stride(0),
      .value_head_stride = value_store.stride(1),
      .scale = static_cast<float>(scale),
      .window = window,
      .softcap = static_cast<float>(softcap),
      .output = nullptr,
  };
  check_attention.at_least("window", window, 0);
  check_attention.at_least("softcap", softcap, 0.0);

  Tensor output = torch::stable::new_empty(hidden, hidden.sizes());
  p.output = output.mutable_data_ptr();
  decoder_layer_cpu(p);
  return output;
}

}  // namespace

constinit Operator* const decoder_layer_operator = TORCH_BOX(&decoder_layer);

}  // namespace lazyllm
