// Few rows, a decoding step's: a sequence's keys are cut into ranges, a task each for all its heads.
#include <algorithm>

#include "../cpu/scratch.h"
#include "../cpu/tasks.h"
#include "lazy_attention_cpu.h"

namespace lazyllm {
namespace {

// A range of keys is worth a task from so many bytes on: 20 to 50 us of memory bandwidth.
constexpr int64_t kChunkBytes = 384 * 1024;

// What one sequence has in the buffers of a call.
struct FewSequence {
  const Sequence* sequence;
  int64_t first_key;  // the first and the last key that any row sees
  int64_t last_key;
  int64_t chunks;
  int64_t queries;  // num_rows * num_heads
  float* packed;    // [queries, padded_dim] of words
  float* states;    // [chunks, state_size]
  int64_t state_size;

  int64_t key_begin(int64_t chunk) const {
    return first_key + (last_key - first_key) * chunk / chunks;
  }
};

// Into how many ranges the keys go: a power of 2, so that 2, 4, 8 ... threads have equally many. It
// must not depend on the batch or the threads.
int64_t count_chunks(int64_t keys, int64_t key_bytes) {
  int64_t chunks = 1;
  while (chunks < kMaxChunks && keys * key_bytes >= 2 * chunks * kChunkBytes) chunks *= 2;
  return std::min(chunks, keys);
}

}  // namespace

void attend_few_rows(const LazyAttentionParams& params, const LazyAttentionKernels& kernels,
                     const std::vector<Sequence>& sequences) {
  if (sequences.empty()) return;
  const int64_t head_dim = params.query.head_dim;
  const FewShape shape = {
      .group = params.query.num_heads / params.key.num_kv_heads,
      .padded_dim = (head_dim + kernels.width - 1) / kernels.width * kernels.width,
  };
  const LogitScale scale(params.scale, params.softcap);
  const int64_t key_bytes =
      2 * params.key.num_kv_heads * head_dim * element_bytes(params.query.dtype);

  std::vector<FewSequence> plans;
  int64_t floats = 0, bytes = 0;
  for (const Sequence& sequence : sequences) {
    FewSequence plan;
    plan.sequence = &sequence;
    plan.first_key = sequence.rows.front().begin;
    plan.last_key = sequence.rows.back().end;
    plan.chunks = count_chunks(plan.last_key - plan.first_key, key_bytes);
    plan.queries = static_cast<int64_t>(sequence.rows.size()) * params.query.num_heads;
    plan.state_size = plan.queries * (2 + shape.padded_dim);
    floats += plan.queries * shape.padded_dim + plan.chunks * plan.state_size;
    bytes += (plan.last_key - plan.first_key) * key_bytes;
    plans.push_back(plan);
  }
  const Scratch buffer(floats);
  float* free = buffer.data();
  std::vector<FewTask> tasks;
  for (FewSequence& plan : plans) {
    const std::vector<VisibleRow>& rows = plan.sequence->rows;
    const int64_t num_rows = static_cast<int64_t>(rows.size());
    plan.packed = free;
    plan.states = free + plan.queries * shape.padded_dim;
    free = plan.states + plan.chunks * plan.state_size;
    kernels.pack_few(params, shape, scale, rows.data(), num_rows, plan.packed);
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      tasks.push_back({
          .rows = rows.data(),
          .num_rows = num_rows,
          .queries = plan.packed,
          .slots = plan.sequence->slots,
          .key_begin = plan.key_begin(chunk),
          .key_end = plan.key_begin(chunk + 1),
          .state = plan.states + chunk * plan.state_size,
      });
    }
  }
  const auto attend = [&](int64_t i, float* scratch) {
    kernels.attend_few(params, shape, scale, tasks[i], scratch);
  };
  const int64_t logits = params.key.num_kv_heads * kFewQueries * kFewKeys;
  run_tasks(static_cast<int64_t>(tasks.size()), logits, bytes >= kChunkBytes, attend);
  const auto finish = [&](int64_t i, float*) {
    const FewSequence& plan = plans[i];
    kernels.finish_few(params, shape, plan.sequence->rows.data(),
                       static_cast<int64_t>(plan.sequence->rows.size()), plan.states,
                       plan.state_size, plan.chunks);
  };
  run_tasks(static_cast<int64_t>(plans.size()), 0, floats * 4 >= kChunkBytes, finish);
}

}  // namespace lazyllm
