// The parts of lazy_attention on the CPU: kernels that know no torch, one set for each instruction
// set and dtype, and the two ways to spread their work.
#pragma once

#include <vector>

#include "../cpu/logits.h"
#include "../cpu/visible.h"
#include "lazy_attention.h"

namespace lazyllm {

// A sequence whose rows have at most so many queries for each kv head is bound by memory, and takes
// the way of few rows: it depends on the sequence alone, so that a batch changes no result.
constexpr int64_t kFewQueries = 16;

// --- many rows: panels x key blocks -----------------------------------------------------------------

// Sizes in floats. Keys and values are packed in words of one element or of two, as kernels have it.
struct PanelShape {
  int64_t lanes;       // rows of a panel, of the instruction set
  int64_t group;       // query heads of a kv head
  int64_t padded_dim;  // head_dim rounded up to whole vectors
  int64_t head_words;  // words of head_dim, rounded up to what the kernel adds up at once
  int64_t key_block;   // keys of a packed block
  int64_t key_words;   // words of as many keys
  int64_t block_keys;  // where a packed block's values begin, behind its keys
  int64_t block_size;  // of a packed block
  int64_t
      panel_state;  // of a panel's running softmax: maxima, sums [lanes], output [padded_dim, lanes]

  int64_t panels(int64_t rows) const { return (rows * group + lanes - 1) / lanes; }
};

// Some rows of a sequence, for one kv head, over some of the keys.
struct PanelTask {
  const VisibleRow* rows;
  int64_t num_rows;
  int64_t kv_head;
  const int64_t* slots;  // of the sequence's used keys
  int64_t key_begin;     // a multiple of key_block
  int64_t key_end;
  const float* packed;   // this kv head's packed blocks; null: pack as needed
  int64_t packed_begin;  // the key that the first of them begins with
};

// --- few rows ---------------------------------------------------------------------------------------

constexpr int64_t kMaxChunks = 64;  // ranges that a sequence's keys are cut into, at most
constexpr int64_t kFewKeys = 64;    // keys of a block

struct FewShape {
  int64_t group;       // query heads of a kv head
  int64_t padded_dim;  // head_dim rounded up to whole vectors
};

// All rows and heads of a sequence over some of its keys.
struct FewTask {
  const VisibleRow* rows;
  int64_t num_rows;
  const float* queries;  // [num_kv_heads, num_rows, group, padded_dim] of words, scaled
  const int64_t* slots;  // of the sequence's used keys
  int64_t key_begin;
  int64_t key_end;
  float* state;  // maxima, sums [queries], output [queries, padded_dim]
};

struct LazyAttentionKernels {
  int64_t width;  // floats of a vector
  int64_t lanes;
  int64_t per_word;    // elements of a word
  int64_t depth_step;  // head_words and a block's key_words are multiples of it
  int64_t key_step;    // key_block is a multiple of it

  // Keys and values slots[0 .. count - 1] of one kv head -> one packed block.
  void (*pack_block)(const LazyAttentionParams& params, const PanelShape& shape, int64_t kv_head,
                     const int64_t* slots, int64_t count, float* block);
  // task -> state [panels, panel_state].
  void (*attend_panels)(const LazyAttentionParams& params, const PanelShape& shape,
                        const LogitScale& scale, const PanelTask& task, float* state,
                        float* scratch);
  // The states of `chunks` ranges of keys, `chunk_size` apart -> output. Destroys the first.
  void (*finish_panels)(const LazyAttentionParams& params, const PanelShape& shape,
                        const PanelTask& task, float* states, int64_t chunk_size, int64_t chunks,
                        float* scratch);

  // Rows -> FewTask::queries.
  void (*pack_few)(const LazyAttentionParams& params, const FewShape& shape,
                   const LogitScale& scale, const VisibleRow* rows, int64_t num_rows,
                   float* queries);
  void (*attend_few)(const LazyAttentionParams& params, const FewShape& shape,
                     const LogitScale& scale, const FewTask& task, float* scratch);
  // The states of `chunks` ranges of keys, `chunk_size` apart -> output.
  void (*finish_few)(const LazyAttentionParams& params, const FewShape& shape,
                     const VisibleRow* rows, int64_t num_rows, const float* states,
                     int64_t chunk_size, int64_t chunks);
};

void attend_many_rows(const LazyAttentionParams& params, const LazyAttentionKernels& kernels,
                      const std::vector<Sequence>& sequences);
void attend_few_rows(const LazyAttentionParams& params, const LazyAttentionKernels& kernels,
                     const std::vector<Sequence>& sequences);

}  // namespace lazyllm
