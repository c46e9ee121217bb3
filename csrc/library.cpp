// The operators torch.ops.lazyllm.*: their schemas and their kernels. What each of them computes
// stands at the top of its header; what they compute it for, in docs/architecture.md.
//
// They are for inference. A float input that requires grad while gradients are recorded is refused
// by every kernel (Checks::no_gradient).

#include <torch/csrc/stable/library.h>

#include "attention/lazy_attention.h"
#include "aux_cache/aux_rows.h"
#include "gate/gated_activation.h"
#include "importance/token_importance.h"
#include "kv_append/kv_append.h"
#include "layer/decoder_layer.h"
#include "linear/linear.h"
#include "norm/rms_norm.h"
#include "rotary/rotate.h"
#include "select/select_tokens.h"

STABLE_TORCH_LIBRARY(lazyllm, library) {
  // Attention probability of each stored key, mean over heads, summed over a few queries.
  library.def(
      "token_importance(Tensor query, Tensor query_index, Tensor query_offsets, "
      "Tensor key_store, Tensor key_slots, Tensor key_index, Tensor key_offsets, "
      "float scale, float softcap) -> Tensor");
  // The best-scored candidates of each sequence, ascending, and how many.
  library.def(
      "select_tokens(Tensor importance, Tensor lengths, Tensor candidates, "
      "Tensor candidate_offsets, Tensor targets, Tensor out_offsets, SymInt out_size, int pool, "
      "int protect_first, int protect_last, bool cover_protected) -> (Tensor, Tensor)");
  // source[index], zeros where the index is -1.
  library.def("aux_gather(Tensor source, Tensor index) -> Tensor");
  // destination[index] = rows, skipping -1.
  library.def("aux_scatter_(Tensor(a!) destination, Tensor index, Tensor rows) -> ()");
  // New keys and values into their slots of the stores.
  library.def(
      "kv_append_(Tensor(a!) key_store, Tensor(b!) value_store, Tensor slots, Tensor key, "
      "Tensor value) -> ()");
  // Causal attention by token index over an indexed set of stored keys.
  library.def(
      "lazy_attention(Tensor query, Tensor query_index, Tensor query_offsets, "
      "Tensor key_store, Tensor value_store, Tensor key_slots, Tensor key_index, "
      "Tensor key_offsets, float scale, int window, float softcap) -> Tensor");
  // x · weight^T + bias for few rows, at the speed at which the weights can be read.
  library.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  // Root mean square normalization.
  library.def("rms_norm(Tensor x, Tensor weight, float eps, float offset) -> Tensor");
  // Rotary position embedding of queries or keys.
  library.def("rotate(Tensor x, Tensor cos, Tensor sin, bool interleaved) -> Tensor");
  // The middle of a gated MLP.
  library.def("gated_activation(Tensor gate, Tensor up, str activation) -> Tensor");
  // A whole decoder layer for few rows; CPU only.
  library.def(
      "decoder_layer_(Tensor hidden, Tensor(a!) key_store, Tensor(b!) value_store, Tensor slots, "
      "Tensor query_index, Tensor query_offsets, Tensor key_slots, Tensor key_index, "
      "Tensor key_offsets, Tensor cos, Tensor sin, Tensor[] weights, Tensor?[] optional, "
      "float eps, float offset, float scale, int window, float softcap, bool interleaved, "
      "str activation) -> Tensor");
}

// Each of these finds the device of its tensors, see common/operator.h.
template <class Library>
static void implement_for_every_device(Library& library) {
  library.impl("token_importance", lazyllm::token_importance_operator);
  library.impl("select_tokens", lazyllm::select_tokens_operator);
  library.impl("aux_gather", lazyllm::aux_gather_operator);
  library.impl("aux_scatter_", lazyllm::aux_scatter_operator);
  library.impl("kv_append_", lazyllm::kv_append_operator);
  library.impl("lazy_attention", lazyllm::lazy_attention_operator);
  library.impl("linear", lazyllm::linear_operator);
  library.impl("rms_norm", lazyllm::rms_norm_operator);
  library.impl("rotate", lazyllm::rotate_operator);
  library.impl("gated_activation", lazyllm::gated_activation_operator);
}

STABLE_TORCH_LIBRARY_IMPL(lazyllm, CPU, library) {
  implement_for_every_device(library);
  library.impl("decoder_layer_", lazyllm::decoder_layer_operator);
}

#ifdef LAZYLLM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(lazyllm, CUDA, library) { implement_for_every_device(library); }
#endif
