#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../attention/lazy_attention.h"
#include "../cpu/scratch.h"
#include "../kv_append/kv_append.h"
#include "../linear/linear_cpu.h"
#include "../norm/rms_norm.h"
#include "../rotary/rotate.h"
#include "decoder_layer.h"

#define LAZYLLM_KERNEL "../layer/decoder_layer_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {
namespace {

const void* data_of(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

// Rows [rows, width] of a buffer, contiguous.
struct Rows {
  void* data;
  int64_t width;
};

// The layer's steps on rows in buffers.
class Layer {
 public:
  Layer(const DecoderLayerShape& shape, double eps, double offset)
      : shape_(shape), eps_(static_cast<float>(eps)), offset_(static_cast<float>(offset)) {}

  LinearParams projection(Rows x, const Tensor& weight, const std::optional<Tensor>& bias,
                          Rows to) const {
    return {.x = x.data,
            .weight = weight.const_data_ptr(),
            .bias = data_of(bias),
            .output = to.data,
            .rows = shape_.rows,
            .in = x.width,
            .out = to.width,
            .x_stride = x.width,
            .weight_stride = weight.stride(0),
            .dtype = shape_.dtype};
  }

  // count rows of weight's size, `stride` apart; to may be x.
  void norm(const void* x, int64_t count, int64_t stride, const Tensor& weight, void* to) const {
    norm_rows_cpu({.x = x,
                   .weight = weight.const_data_ptr(),
                   .output = to,
                   .rows = count,
                   .dim = weight.size(0),
                   .x_stride = stride,
                   .eps = eps_,
                   .offset = offset_,
                   .dtype = shape_.dtype});
  }

  // x [rows, heads, head_dim], each head normed where there is a weight, rotated -> to, not x.
  void rotate(Rows x, const std::optional<Tensor>& weight, const Tensor& cos, const Tensor& sin,
              bool interleaved, void* to) const {
    const int64_t heads = x.width / shape_.head_dim;
    if (weight.has_value()) norm(x.data, shape_.rows * heads, shape_.head_dim, *weight, x.data);
    rotate_rows_cpu({.x = x.data,
                     .cos = cos.const_data_ptr(),
                     .sin = sin.const_data_ptr(),
                     .output = to,
                     .rows = shape_.rows,
                     .num_heads = heads,
                     .head_dim = shape_.head_dim,
                     .half = cos.size(1),
                     .x_row_stride = x.width,
                     .x_head_stride = shape_.head_dim,
                     .cos_stride = cos.stride(0),
                     .sin_stride = sin.stride(0),
                     .interleaved = interleaved,
                     .dtype = shape_.dtype});
  }

  // sums = hidden + out_norm(added); added is overwritten.
  void add_rows(const void* hidden, int64_t stride, Rows added,
                const std::optional<Tensor>& out_norm, void* sums) const {
    if (out_norm.has_value()) norm(added.data, shape_.rows, added.width, *out_norm, added.data);
    visit_float(shape_.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      for (int64_t row = 0; row < shape_.rows; ++row) {
        const T* from = static_cast<const T*>(hidden) + row * stride;
        const T* with = static_cast<const T*>(added.data) + row * added.width;
        T* to = static_cast<T*>(sums) + row * added.width;
        LAZYLLM_CALL_KERNEL(add(from, with, added.width, to));
      }
    });
  }

  void gate(Rows up, void* gate) const {
    gate_rows_cpu({.gate = gate,
                   .up = up.data,
                   .output = gate,
                   .rows = shape_.rows,
                   .inner = up.width,
                   .gate_stride = up.width,
                   .up_stride = up.width,
                   .activation = shape_.activation,
                   .dtype = shape_.dtype});
  }

 private:
  DecoderLayerShape shape_;
  float eps_;
  float offset_;
};

void check_vector(const Checks& check, const char* name, const std::optional<Tensor>& vector,
                  int64_t size, ScalarType dtype) {
  if (!vector.has_value()) return;
  check.floats(name, *vector, 1, dtype);
  check.size(name, *vector, 0, size);
}

void check_projection(const Checks& check, const char* name, const Tensor& weight, int64_t out,
                      int64_t in, const char* bias_name, const std::optional<Tensor>& bias,
                      ScalarType dtype) {
  check.floats(name, weight, 2, dtype);
  check.size(name, weight, 0, out);
  check.size(name, weight, 1, in);
  check_vector(check, bias_name, bias, out, dtype);
}

std::vector<int64_t> used_rows(const Tensor& query_index) {
  const int64_t* index = query_index.const_data_ptr<int64_t>();
  std::vector<int64_t> used;
  for (int64_t row = 0; row < query_index.size(0); ++row) {
    if (index[row] != -1) used.push_back(row);
  }
  return used;
}

int64_t row_bytes(const Tensor& tensor) {
  return (tensor.dim() == 1 ? 1 : tensor.size(1)) * static_cast<int64_t>(tensor.element_size());
}

char* row_of(const Tensor& tensor, int64_t row) {
  return static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())) +
         row * tensor.stride(0) * static_cast<int64_t>(tensor.element_size());
}

// Some rows of a tensor [R] or [R, width].
Tensor take_rows(const Tensor& from, const std::vector<int64_t>& rows) {
  const int64_t count = static_cast<int64_t>(rows.size());
  const Tensor taken = from.dim() == 1 ? torch::stable::new_empty(from, {count})
                                       : torch::stable::new_empty(from, {count, from.size(1)});
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(row_of(taken, i), row_of(from, rows[i]), row_bytes(from));
  }
  return taken;
}

// The rows of a tensor [rows.size(), width] to these places of another one.
void put_rows(const Tensor& from, const std::vector<int64_t>& rows, const Tensor& to) {
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(row_of(to, rows[i]), row_of(from, static_cast<int64_t>(i)), row_bytes(from));
  }
}

// The offsets that are left when only the used rows are.
Tensor offsets_of_used(const Checks& check, const Tensor& offsets, const std::vector<int64_t>& used,
                       int64_t rows) {
  const int64_t* from = offsets.const_data_ptr<int64_t>();
  check.offset_values("query_offsets", from, offsets.size(0) - 1, rows);
  const Tensor own = torch::stable::new_empty(offsets, {offsets.size(0)});
  int64_t* to = reinterpret_cast<int64_t*>(row_of(own, 0));
  for (int64_t b = 0; b < offsets.size(0); ++b) {
    to[b] = std::lower_bound(used.begin(), used.end(), from[b]) - used.begin();
  }
  return own;
}

}  // namespace

Tensor decoder_layer_cpu(const Tensor& hidden, Tensor key_store, Tensor value_store,
                         const Tensor& slots, const Tensor& query_index,
                         const Tensor& query_offsets, const Tensor& key_slots,
                         const Tensor& key_index, const Tensor& key_offsets, const Tensor& cos,
                         const Tensor& sin, std::vector<Tensor> weights,
                         std::vector<std::optional<Tensor>> optional, double eps, double offset,
                         double scale, int64_t window, double softcap, bool interleaved,
                         std::string activation) {
  const Checks check("decoder_layer_", hidden);
  if (weights.size() != 9) check.refuse("weights", "9 tensors", std::to_string(weights.size()));
  if (optional.size() != 8) check.refuse("optional", "8 tensors", std::to_string(optional.size()));
  const Tensor &input_norm = weights[0], &q = weights[1], &k = weights[2], &v = weights[3],
               &o = weights[4], &mlp_norm = weights[5], &gate = weights[6], &up = weights[7],
               &down = weights[8];
  const std::optional<Tensor>&q_bias = optional[0], &k_bias = optional[1], &v_bias = optional[2],
        &o_bias = optional[3], &q_norm = optional[4], &k_norm = optional[5],
        &attention_out_norm = optional[6], &mlp_out_norm = optional[7];
  check.floats("hidden", hidden, 2);
  const ScalarType dtype = hidden.scalar_type();
  check.floats("key_store", key_store, 3, dtype);
  check.floats("q", q, 2, dtype);
  const int64_t head_dim = key_store.size(2), num_kv_heads = key_store.size(1);
  if (head_dim == 0 || q.size(0) % head_dim != 0) {
    check.refuse("q", "whole heads of " + std::to_string(head_dim), std::to_string(q.size(0)));
  }
  const Activation opens = check_activation(check, activation);
  check.floats("gate", gate, 2, dtype);
  const DecoderLayerShape shape = {
      .rows = hidden.size(0),
      .hidden = hidden.size(1),
      .num_heads = q.size(0) / head_dim,
      .num_kv_heads = num_kv_heads,
      .head_dim = head_dim,
      .inner = gate.size(0),
      .activation = opens,
      .dtype = dtype,
  };
  const int64_t query_width = q.size(0), key_width = num_kv_heads * head_dim;
  check_projection(check, "q", q, query_width, shape.hidden, "q_bias", q_bias, dtype);
  check_projection(check, "k", k, key_width, shape.hidden, "k_bias", k_bias, dtype);
  check_projection(check, "v", v, key_width, shape.hidden, "v_bias", v_bias, dtype);
  check_projection(check, "o", o, shape.hidden, query_width, "o_bias", o_bias, dtype);
  check_projection(check, "gate", gate, shape.inner, shape.hidden, "", {}, dtype);
  check_projection(check, "up", up, shape.inner, shape.hidden, "", {}, dtype);
  check_projection(check, "down", down, shape.hidden, shape.inner, "", {}, dtype);
  check_vector(check, "input_norm", input_norm, shape.hidden, dtype);
  check_vector(check, "mlp_norm", mlp_norm, shape.hidden, dtype);
  check_vector(check, "attention_out_norm", attention_out_norm, shape.hidden, dtype);
  check_vector(check, "mlp_out_norm", mlp_out_norm, shape.hidden, dtype);
  check_vector(check, "q_norm", q_norm, head_dim, dtype);
  check_vector(check, "k_norm", k_norm, head_dim, dtype);
  check.at_least("eps", eps, 0.0);

  check.index("slots", slots, shape.rows);
  check.index("query_index", query_index, shape.rows);
  check.index("query_offsets", query_offsets);
  if (query_offsets.size(0) < 1) check.refuse("query_offsets", "at least 1 offset", "none");
  Tensor output = torch::stable::new_empty(hidden, {shape.rows, shape.hidden});
  check.floats("cos", cos, 2, dtype);
  check.floats("sin", sin, 2, dtype);
  check.size("cos", cos, 0, shape.rows);
  check.size("sin", sin, 0, shape.rows);
  const std::vector<int64_t> used = used_rows(query_index);
  if (static_cast<int64_t>(used.size()) < shape.rows) {
    for (int64_t row = 0; row < shape.rows; ++row) {
      std::memcpy(row_of(output, row), row_of(hidden, row), row_bytes(hidden));
    }
    const Tensor computed = decoder_layer_cpu(
        take_rows(hidden, used), key_store, value_store, take_rows(slots, used),
        take_rows(query_index, used), offsets_of_used(check, query_offsets, used, shape.rows),
        key_slots, key_index, key_offsets, take_rows(cos, used), take_rows(sin, used), weights,
        optional, eps, offset, scale, window, softcap, interleaved, activation);
    put_rows(computed, used, output);
    return output;
  }

  Tensor query = torch::stable::new_empty(hidden, {shape.rows, shape.num_heads, head_dim});
  Tensor key = torch::stable::new_empty(hidden, {shape.rows, num_kv_heads, head_dim});
  Tensor value = torch::stable::new_empty(hidden, {shape.rows, num_kv_heads, head_dim});
  check_rotate(check, query, cos, sin, interleaved);

  // One buffer of the dtype: the normed rows, and what is projected from them.
  const int64_t widest = std::max(query_width + key_width, 2 * shape.inner);
  const int64_t size = static_cast<int64_t>(hidden.element_size());
  const Scratch buffer((shape.rows * (shape.hidden + widest) * size + 3) / 4 + 1);
  char* free = reinterpret_cast<char*>(buffer.data());
  const auto take = [&](int64_t width) {
    const Rows rows = {free, width};
    free += shape.rows * width * size;
    return rows;
  };
  const Layer layer(shape, eps, offset);
  const Rows x = take(shape.hidden);
  char* const behind = free;
  Rows first = take(query_width), second = take(key_width);

  layer.norm(hidden.const_data_ptr(), shape.rows, hidden.stride(0), input_norm, x.data);
  const LinearParams projections[] = {
      layer.projection(x, q, q_bias, first), layer.projection(x, k, k_bias, second),
      layer.projection(x, v, v_bias, {value.mutable_data_ptr(), key_width})};
  if (shape.rows > 0) multiply_rows(projections, 3);
  layer.rotate(first, q_norm, cos, sin, interleaved, query.mutable_data_ptr());
  layer.rotate(second, k_norm, cos, sin, interleaved, key.mutable_data_ptr());
  kv_append_cpu(key_store, value_store, slots, key, value);
  const Tensor attended =
      lazy_attention_cpu(query, query_index, query_offsets, key_store, value_store, key_slots,
                         key_index, key_offsets, scale, window, softcap);
  const Rows heads = {const_cast<void*>(attended.const_data_ptr()), query_width};
  const LinearParams out = layer.projection(heads, o, o_bias, x);
  if (shape.rows > 0) multiply_rows(&out, 1);
  layer.add_rows(hidden.const_data_ptr(), hidden.stride(0), x, attention_out_norm,
                 output.mutable_data_ptr());

  free = behind;
  first = take(shape.inner), second = take(shape.inner);
  layer.norm(output.const_data_ptr(), shape.rows, shape.hidden, mlp_norm, x.data);
  const LinearParams inner[] = {layer.projection(x, gate, {}, first),
                                layer.projection(x, up, {}, second)};
  if (shape.rows > 0) multiply_rows(inner, 2);
  layer.gate(second, first.data);
  const LinearParams last = layer.projection(first, down, {}, x);
  if (shape.rows > 0) multiply_rows(&last, 1);
  layer.add_rows(output.const_data_ptr(), shape.hidden, x, mlp_out_norm, output.mutable_data_ptr());
  return output;
}

}  // namespace lazyllm
