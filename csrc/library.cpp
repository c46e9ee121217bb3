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

STABLE_TORCH_LIBRARY_IMPL(lazyllm, CPU, library) {
  library.impl("token_importance", TORCH_BOX(&lazyllm::token_importance_cpu));
  library.impl("select_tokens", TORCH_BOX(&lazyllm::select_tokens_cpu));
  library.impl("aux_gather", TORCH_BOX(&lazyllm::aux_gather_cpu));
  library.impl("aux_scatter_", TORCH_BOX(&lazyllm::aux_scatter_cpu));
  library.impl("kv_append_", TORCH_BOX(&lazyllm::kv_append_cpu));
  library.impl("lazy_attention", TORCH_BOX(&lazyllm::lazy_attention_cpu));
  library.impl("linear", TORCH_BOX(&lazyllm::linear_cpu));
  library.impl("rms_norm", TORCH_BOX(&lazyllm::rms_norm_cpu));
  library.impl("rotate", TORCH_BOX(&lazyllm::rotate_cpu));
  library.impl("gated_activation", TORCH_BOX(&lazyllm::gated_activation_cpu));
  library.impl("decoder_layer_", TORCH_BOX(&lazyllm::decoder_layer_cpu));
}

#ifdef LAZYLLM_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(lazyllm, CUDA, library) {
  library.impl("token_importance", TORCH_BOX(&lazyllm::token_importance_cuda));
  library.impl("select_tokens", TORCH_BOX(&lazyllm::select_tokens_cuda));
  library.impl("aux_gather", TORCH_BOX(&lazyllm::aux_gather_cuda));
  library.impl("aux_scatter_", TORCH_BOX(&lazyllm::aux_scatter_cuda));
  library.impl("kv_append_", TORCH_BOX(&lazyllm::kv_append_cuda));
  library.impl("lazy_attention", TORCH_BOX(&lazyllm::lazy_attention_cuda));
  library.impl("linear", TORCH_BOX(&lazyllm::linear_cuda));
  library.impl("rms_norm", TORCH_BOX(&lazyllm::rms_norm_cuda));
  library.impl("rotate", TORCH_BOX(&lazyllm::rotate_cuda));
  library.impl("gated_activation", TORCH_BOX(&lazyllm::gated_activation_cuda));
}
#endif
