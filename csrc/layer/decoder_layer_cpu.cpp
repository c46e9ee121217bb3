#include <algorithm>
#include <cstring>
#include <vector>

#include "../aux_cache/aux_rows.h"
#include "../common/values.h"
#include "../cpu/scratch.h"
#include "../linear/linear_cpu.h"
#include "decoder_layer.h"

#define LAZYLLM_KERNEL "../layer/decoder_layer_kernel.inc"
#include "../cpu/isa.h"

namespace lazyllm {
namespace {

// Rows [rows, width] of a buffer, contiguous.
struct Rows {
  void* data;
  int64_t width;
};

// Rows of a dtype in one piece of memory, given out one behind the other.
class Buffers {
 public:
  // For `width` elements a row, all together.
  Buffers(int64_t rows, int64_t width, ScalarType dtype)
      : element_rows_(rows * element_bytes(dtype)),
        memory_(element_rows_ * width / sizeof(float) + 1),
        free_(reinterpret_cast<char*>(memory_.data())) {}

  Rows take(int64_t width) {
    const Rows rows = {free_, width};
    free_ += element_rows_ * width;
    return rows;
  }

  // Everything from `first` on is free again.
  void take_back(Rows first) { free_ = static_cast<char*>(first.data); }

 private:
  int64_t element_rows_;  // bytes of one element in each row
  Scratch memory_;
  char* free_;
};

// x -> to [rows, linear.out].
LinearParams projection(const DecoderLayerParams& p, LinearParams linear, Rows x, Rows to) {
  linear.x = x.data;
  linear.output = to.data;
  linear.rows = p.rows;
  linear.x_stride = x.width;
  return linear;
}

// count rows, `stride` apart; to may be x.
void normalize(RmsNormParams norm, const void* x, int64_t count, int64_t stride, void* to) {
  norm.x = x;
  norm.output = to;
  norm.rows = count;
  norm.x_stride = stride;
  rms_norm_cpu(norm);
}

// x [rows, heads, head_dim], each head normed where there is a weight, rotated -> to, not x.
void rotate(const DecoderLayerParams& p, Rows x, const RmsNormParams& norm, Rows to) {
  const int64_t head_dim = p.attention.query.head_dim;
  RotateParams rotary = p.rotary;
  rotary.x = x.data;
  rotary.output = to.data;
  rotary.rows = p.rows;
  rotary.num_heads = x.width / head_dim;
  rotary.x_row_stride = x.width;
  if (norm.weight != nullptr) {
    normalize(norm, x.data, p.rows * rotary.num_heads, head_dim, x.data);
  }
  rotate_cpu(rotary);
}

// p.output = hidden + norm(added); hidden [rows, channels] may be p.output, added is overwritten.
void add_rows(const DecoderLayerParams& p, const void* hidden, int64_t stride, Rows added,
              const RmsNormParams& norm) {
  if (norm.weight != nullptr) normalize(norm, added.data, p.rows, added.width, added.data);
  LAZYLLM_CALL_TYPED_KERNEL(p.dtype,
                            add<T>(p.rows, p.channels, hidden, stride, added.data, p.output));
}

// p.output = p.hidden + what the attention of the normed rows adds.
void add_attention(const DecoderLayerParams& p, Buffers& buffers, Rows x) {
  const Rows first = buffers.take(p.q.out), second = buffers.take(p.k.out);
  const Rows query = buffers.take(p.q.out), key = buffers.take(p.k.out);
  const Rows value = buffers.take(p.v.out);
  normalize(p.input_norm, p.hidden, p.rows, p.hidden_stride, x.data);
  const LinearParams projections[] = {projection(p, p.q, x, first), projection(p, p.k, x, second),
                                      projection(p, p.v, x, value)};
  multiply_rows(projections, 3);
  rotate(p, first, p.q_norm, query);
  rotate(p, second, p.k_norm, key);

  KvAppendParams append = p.append;
  append.key.from = key.data;
  append.value.from = value.data;
  kv_append_cpu(append);
  LazyAttentionParams attention = p.attention;
  attention.query.data = query.data;
  attention.output = first.data;
  lazy_attention_cpu(attention);
  linear_cpu(projection(p, p.o, first, x));
  add_rows(p, p.hidden, p.hidden_stride, x, p.attention_out_norm);
  buffers.take_back(first);
}

// p.output += what the MLP of its normed rows adds.
void add_mlp(const DecoderLayerParams& p, Buffers& buffers, Rows x) {
  const Rows gate = buffers.take(p.gate.out), up = buffers.take(p.up.out);
  normalize(p.mlp_norm, p.output, p.rows, p.channels, x.data);
  const LinearParams projections[] = {projection(p, p.gate, x, gate), projection(p, p.up, x, up)};
  multiply_rows(projections, 2);
  gated_activation_cpu({
      .gate = gate.data,
      .up = up.data,
      .output = gate.data,
      .rows = p.rows,
      .inner = gate.width,
      .gate_stride = gate.width,
      .up_stride = up.width,
      .activation = p.activation,
      .dtype = p.dtype,
  });
  linear_cpu(projection(p, p.down, gate, x));
  add_rows(p, p.output, p.channels, x, p.mlp_out_norm);
}

// The layer, of rows that are all used.
void compute(const DecoderLayerParams& p) {
  const int64_t widest = std::max(2 * (p.q.out + p.k.out) + p.v.out, 2 * p.gate.out);
  Buffers buffers(p.rows, p.channels + widest, p.dtype);
  const Rows x = buffers.take(p.channels);
  add_attention(p, buffers, x);
  add_mlp(p, buffers, x);
}

std::vector<int64_t> used_rows(const Queries& queries) {
  std::vector<int64_t> used;
  for (int64_t row = 0; row < queries.rows; ++row) {
    if (queries.index[row] != -1) used.push_back(row);
  }
  return used;
}

// The layer of the used rows alone, which are copied side by side; p.output holds the others already.
void compute_used(const DecoderLayerParams& p, const std::vector<int64_t>& used) {
  const Queries& queries = p.attention.query;
  check_offset_values("decoder_layer_", "query_offsets", queries.offsets, queries.batch, p.rows);
  std::vector<int64_t> offsets(queries.batch + 1);
  for (int64_t b = 0; b <= queries.batch; ++b) {
    offsets[b] = std::lower_bound(used.begin(), used.end(), queries.offsets[b]) - used.begin();
  }
  const int64_t count = static_cast<int64_t>(used.size());
  AuxRowsParams copy{};
  copy.index = used.data();
  copy.count = count;
  copy.num_stored = p.rows;
  // Rows of `width` elements of `bytes`, `stride` elements apart.
  const auto take = [&](const void* from, int64_t stride, int64_t width, int64_t bytes, void* to) {
    copy.from = static_cast<const char*>(from);
    copy.to = static_cast<char*>(to);
    copy.row_bytes = copy.to_stride = width * bytes;
    copy.from_stride = stride * bytes;
    aux_gather_cpu(copy);
  };

  const int64_t bytes = element_bytes(p.dtype), half = p.rotary.half;
  Buffers buffers(count, 2 * (p.channels + half), p.dtype);
  const Rows hidden = buffers.take(p.channels), output = buffers.take(p.channels);
  const Rows cos = buffers.take(half), sin = buffers.take(half);
  std::vector<int64_t> slots(count), index(count);
  take(p.hidden, p.hidden_stride, p.channels, bytes, hidden.data);
  take(p.rotary.cos, p.rotary.cos_stride, half, bytes, cos.data);
  take(p.rotary.sin, p.rotary.sin_stride, half, bytes, sin.data);
  take(p.append.slots, 1, 1, sizeof(int64_t), slots.data());
  take(queries.index, 1, 1, sizeof(int64_t), index.data());

  DecoderLayerParams own = p;
  own.hidden = hidden.data;
  own.output = output.data;
  own.rows = own.append.tokens = own.attention.query.rows = count;
  own.hidden_stride = p.channels;
  own.rotary.cos = cos.data;
  own.rotary.sin = sin.data;
  own.rotary.cos_stride = own.rotary.sin_stride = half;
  own.append.slots = slots.data();
  own.attention.query.index = index.data();
  own.attention.query.offsets = offsets.data();
  compute(own);

  copy.from = static_cast<const char*>(output.data);
  copy.to = static_cast<char*>(p.output);
  copy.row_bytes = copy.from_stride = copy.to_stride = p.channels * bytes;
  aux_scatter_cpu(copy);
}

}  // namespace

void decoder_layer_cpu(const DecoderLayerParams& p) {
  const std::vector<int64_t> used = used_rows(p.attention.query);
  if (static_cast<int64_t>(used.size()) == p.rows) return compute(p);
  const int64_t row_bytes = p.channels * element_bytes(p.dtype);
  const int64_t hidden_bytes = p.hidden_stride * element_bytes(p.dtype);
  for (int64_t row = 0; row < p.rows; ++row) {
    std::memcpy(static_cast<char*>(p.output) + row * row_bytes,
                static_cast<const char*>(p.hidden) + row * hidden_bytes, row_bytes);
  }
  compute_used(p, used);
}

}  // namespace lazyllm
