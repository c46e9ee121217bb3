// kv_append_ on CUDA: keys and values of the new tokens into their slots, in one launch.

#include "../cuda/launch.cuh"
#include "../cuda/sequences.cuh"
#include "../cuda/words.cuh"
#include "kv_append.h"

namespace lazyllm {
namespace cuda {
namespace {

/// Strides here are in words, and where neighbouring heads are neighbours in memory, on both sides,
/// all heads of a token are one.
struct KvAppendLaunch {
  KvAppendParams op;
  int64_t num_heads;
  int64_t head_words;
};

/// \brief key_store[slots[t]] = key[t] (blockIdx.y 0), and the same for values (1).
///
/// Grid (blocks of tokens, 2); block (threads of a token, tokens). Slots that are unused or out of
/// range are skipped.
/// side.from [tokens, num_heads, head_words], side.to [num_slots, num_heads, head_words]
/// \tparam Word what one load moves
template <typename Word>
__global__ void __launch_bounds__(kCopyThreads) kv_append_kernel(const KvAppendLaunch launch) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (token >= launch.op.tokens) return;
  const int64_t slot = launch.op.slots[token];
  if (!is_used(slot, launch.op.num_slots)) return;
  const KvAppendSide& side = blockIdx.y == 0 ? launch.op.key : launch.op.value;
  const Word* from = static_cast<const Word*>(side.from) + token * side.from_token_stride;
  Word* to = static_cast<Word*>(side.to) + slot * side.to_slot_stride;
  if (launch.num_heads == 1) {
    copy_row<Word>(
        launch.head_words, [&](int64_t i) { return from + i; }, [&](int64_t i) { return to + i; });
    return;
  }
  const unsigned head_words = static_cast<unsigned>(launch.head_words);
  const auto place = [&](int64_t i, int64_t head_stride) {
    const unsigned word = static_cast<unsigned>(i);
    return word / head_words * head_stride + word % head_words;
  };
  copy_row<Word>(
      launch.num_heads * launch.head_words,
      [&](int64_t i) { return from + place(i, side.from_head_stride); },
      [&](int64_t i) { return to + place(i, side.to_head_stride); });
}

/// `side` with its strides in words of `elements` elements.
KvAppendSide in_words(KvAppendSide side, int64_t elements) {
  side.from_token_stride /= elements;
  side.from_head_stride /= elements;
  side.to_slot_stride /= elements;
  side.to_head_stride /= elements;
  return side;
}

bool heads_are_neighbours(const KvAppendSide& side, int64_t head_dim) {
  return side.from_head_stride == head_dim && side.to_head_stride == head_dim;
}

}  // namespace
}  // namespace cuda

void kv_append_cuda(const KvAppendParams& op) {
  const cuda::Launcher launcher("kv_append_", op.device);
  if (op.tokens == 0 || op.num_kv_heads == 0 || op.head_dim == 0) return;

  const bool merged = op.num_kv_heads == 1 || (cuda::heads_are_neighbours(op.key, op.head_dim) &&
                                               cuda::heads_are_neighbours(op.value, op.head_dim));
  const int64_t bytes = op.element_bytes;
  const int64_t num_heads = merged ? 1 : op.num_kv_heads;
  const int64_t head_dim = merged ? op.num_kv_heads * op.head_dim : op.head_dim;
  const auto head_stride = [&](int64_t stride) { return merged ? 0 : stride * bytes; };
  cuda::visit_word(
      {op.key.from, op.key.to, op.value.from, op.value.to},
      {head_dim * bytes, op.key.from_token_stride * bytes, op.key.to_slot_stride * bytes,
       op.value.from_token_stride * bytes, op.value.to_slot_stride * bytes,
       head_stride(op.key.from_head_stride), head_stride(op.key.to_head_stride),
       head_stride(op.value.from_head_stride), head_stride(op.value.to_head_stride)},
      [&](auto word) {
        const int64_t elements = static_cast<int64_t>(sizeof(word)) / bytes;
        cuda::KvAppendLaunch launch{op, num_heads, head_dim / elements};
        launch.op.key = cuda::in_words(op.key, elements);
        launch.op.value = cuda::in_words(op.value, elements);
        const dim3 block = cuda::copy_block(num_heads * launch.head_words);
        const dim3 grid(cuda::num_blocks(op.tokens, block.y), 2);
        launcher.launch(cuda::kv_append_kernel<decltype(word)>, grid, block, 0, launch);
      });
}

}  // namespace lazyllm
