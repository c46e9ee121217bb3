// Many rows, a prefill's or a boundary layer's: blocks of rows, a task each for one kv head.
#include <algorithm>

#include "../cpu/scratch.h"
#include "../cpu/tasks.h"
#include "lazy_attention_cpu.h"

namespace lazyllm {
namespace {

// Second-level cache for the queries and the output of a task's rows, and for a packed block of keys
// and values, in floats: together half a megabyte, the least that processors with AVX2 have. Those that
// multiply pairs have a megabyte or more, and take twice as much.
constexpr int64_t kRowsFloats = 48 * 1024;
constexpr int64_t kBlockFloats = 24 * 1024;
constexpr int64_t kMostLanes = 384;
// Floats of packed keys and values at once, unless a single kv head needs more.
constexpr int64_t kPackedFloats = 4 * 1024 * 1024;
// From so many row blocks on, keys and values are packed once for all of them.
constexpr int64_t kSharedRowBlocks = 3;
// With fewer tasks than this a sequence's keys are cut into ranges of at least so many keys.
constexpr int64_t kEnoughTasks = 32;
constexpr int64_t kChunkKeys = 1024;
constexpr int64_t kLeastPanels = 4;  // of a task, where rows are many

int64_t divide_up(int64_t x, int64_t by) { return (x + by - 1) / by; }
int64_t round_up(int64_t x, int64_t to) { return divide_up(x, to) * to; }

// So many rows or a few more, which leave few lanes of their last panel unused.
int64_t fill_panels(const PanelShape& shape, int64_t rows) {
  return std::max<int64_t>(1, shape.panels(rows) * shape.lanes / shape.group);
}

struct Call {
  const LazyAttentionParams& params;
  const LazyAttentionKernels& kernels;
  LogitScale scale;
  PanelShape shape;
  int64_t most_rows;       // of a task
  int64_t least_rows;      // of a task, where rows are many
  int64_t scratch_floats;  // of a thread
};

Call prepare(const LazyAttentionParams& params, const LazyAttentionKernels& kernels) {
  const int64_t head_dim = params.query.head_dim;
  PanelShape shape;
  shape.lanes = kernels.lanes;
  shape.group = params.query.num_heads / params.key.num_kv_heads;
  shape.padded_dim = round_up(head_dim, kernels.width);
  const int64_t per_word = kernels.per_word;
  shape.head_words = round_up(divide_up(head_dim, per_word), kernels.depth_step);
  const int64_t step = std::max<int64_t>(16, kernels.key_step);
  const int64_t block_words = per_word * kBlockFloats;
  shape.key_block =
      std::clamp<int64_t>(per_word * block_words / (2 * shape.padded_dim) / step * step, 32, 192);
  shape.key_words = shape.key_block / per_word;
  shape.block_keys = shape.key_block * shape.head_words;
  shape.block_size = round_up(shape.block_keys + shape.key_words * shape.padded_dim + 1, 16);
  shape.panel_state = (2 + shape.padded_dim) * shape.lanes;
  const int64_t lanes = std::clamp<int64_t>(per_word * kRowsFloats / (2 * shape.padded_dim),
                                            2 * shape.lanes, per_word * kMostLanes);
  const int64_t most_rows = fill_panels(shape, divide_up(lanes, shape.group));
  const int64_t range_floats = 2 * shape.lanes + 4;
  const int64_t panel_floats = shape.panel_state + shape.head_words * shape.lanes + range_floats;
  return {
      .params = params,
      .kernels = kernels,
      .scale = LogitScale(params.scale, params.softcap),
      .shape = shape,
      .most_rows = most_rows,
      .least_rows = std::min(
          most_rows, fill_panels(shape, divide_up(kLeastPanels * shape.lanes, shape.group))),
      .scratch_floats =
          shape.panels(most_rows) * panel_floats + shape.key_block * shape.lanes + shape.block_size,
  };
}

// How a sequence's work is cut. A row's result depends on the ranges of keys alone, and these on
// nothing but the sequence; into which blocks the rows go is a matter of speed.
struct Cut {
  int64_t first_key;  // the first key that any row sees, rounded down to a packed block
  int64_t last_key;
  int64_t block_rows;
  int64_t row_blocks;
  int64_t chunk_keys;  // a multiple of key_block
  int64_t chunks;

  bool shares_packed() const { return row_blocks >= kSharedRowBlocks; }
};

Cut cut(const Call& call, const Sequence& sequence) {
  const int64_t rows = static_cast<int64_t>(sequence.rows.size());
  const int64_t key_block = call.shape.key_block;
  Cut cut;
  cut.first_key = sequence.rows.front().begin / key_block * key_block;
  cut.last_key = sequence.rows.back().end;
  cut.block_rows = call.most_rows;
  cut.row_blocks = divide_up(rows, cut.block_rows);
  cut.chunks = 1;
  const int64_t keys = cut.last_key - cut.first_key;
  const int64_t wanted = divide_up(kEnoughTasks, call.params.key.num_kv_heads * cut.row_blocks);
  if (!cut.shares_packed() && keys >= 2 * kChunkKeys) {
    cut.chunks = std::min(wanted, keys / kChunkKeys);
  } else {
    cut.block_rows = fill_panels(call.shape, divide_up(rows, cut.row_blocks * wanted));
    cut.block_rows = std::clamp(cut.block_rows, call.least_rows, call.most_rows);
    cut.row_blocks = divide_up(rows, cut.block_rows);
  }
  cut.chunk_keys = round_up(divide_up(keys, cut.chunks), key_block);
  cut.chunks = divide_up(keys, cut.chunk_keys);
  return cut;
}

// Some kv heads of a sequence: what is worked on at once.
struct Part {
  const Sequence* sequence;
  Cut cut;
  int64_t first_head;
  int64_t last_head;
  int64_t head_floats;   // packed keys and values of a kv head; 0: not shared
  float* packed;         // [kv heads, head_floats]
  int64_t chunk_floats;  // running softmaxes of a row block
  float* states;         // [kv heads, row blocks, chunks, chunk_floats]; null: one range of keys

  int64_t packed_floats() const { return (last_head - first_head) * head_floats; }
  int64_t state_floats() const {
    if (cut.chunks == 1) return 0;
    return (last_head - first_head) * cut.row_blocks * cut.chunks * chunk_floats;
  }
};

struct Task {
  PanelTask panel;
  float* states;  // of all ranges of keys, chunk_floats apart; null: there is one, kept in scratch
  int64_t chunk;
  int64_t chunks;
  int64_t chunk_floats;

  int64_t cost() const {
    const VisibleRow& first = panel.rows[0];
    const VisibleRow& last = panel.rows[panel.num_rows - 1];
    return panel.num_rows * (first.end - first.begin + last.end - last.begin) / chunks;
  }
};

void pack_shared(const Call& call, const std::vector<Part>& parts) {
  struct Block {
    const Part* part;
    int64_t key;
  };
  std::vector<Block> blocks;
  for (const Part& part : parts) {
    if (part.head_floats == 0) continue;
    for (int64_t key = part.cut.first_key; key < part.cut.last_key; key += call.shape.key_block) {
      blocks.push_back({&part, key});
    }
  }
  // All heads of a block: they lie side by side in the stores.
  run_tasks(blocks.size(), 0, true, [&](int64_t i, float*) {
    const auto [part, key] = blocks[i];
    const int64_t count = std::min(call.shape.key_block, part->cut.last_key - key);
    float* to =
        part->packed + (key - part->cut.first_key) / call.shape.key_block * call.shape.block_size;
    for (int64_t head = part->first_head; head < part->last_head; ++head) {
      call.kernels.pack_block(call.params, call.shape, head, part->sequence->slots + key, count,
                              to);
      to += part->head_floats;
    }
  });
}

// The tasks of a part. Those of a range of keys come together: its rows of the stores are then at
// hand for all heads.
void add_tasks(const Call& call, const Part& part, std::vector<Task>& tasks) {
  const Cut& cut = part.cut;
  const std::vector<VisibleRow>& rows = part.sequence->rows;
  for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
    const int64_t key_begin = cut.first_key + chunk * cut.chunk_keys;
    float* states = part.states;
    for (int64_t head = part.first_head; head < part.last_head; ++head) {
      for (int64_t block = 0; block < cut.row_blocks; ++block) {
        const int64_t row = block * cut.block_rows;
        Task task;
        task.panel.rows = rows.data() + row;
        task.panel.num_rows = std::min<int64_t>(cut.block_rows, rows.size() - row);
        task.panel.kv_head = head;
        task.panel.slots = part.sequence->slots;
        task.panel.key_begin = key_begin;
        task.panel.key_end = std::min(key_begin + cut.chunk_keys, cut.last_key);
        task.panel.packed = nullptr;
        task.panel.packed_begin = cut.first_key;
        if (part.head_floats > 0) {
          task.panel.packed = part.packed + (head - part.first_head) * part.head_floats;
        }
        task.states = states;
        task.chunk = chunk;
        task.chunks = cut.chunks;
        task.chunk_floats = part.chunk_floats;
        tasks.push_back(task);
        if (states != nullptr) states += cut.chunks * part.chunk_floats;
      }
    }
  }
}

void attend_parts(const Call& call, std::vector<Part>& parts) {
  int64_t floats = 0;
  for (const Part& part : parts) floats += part.packed_floats() + part.state_floats();
  const Scratch buffer(floats);
  float* free = buffer.data();
  std::vector<Task> tasks;
  bool merges = false;
  for (Part& part : parts) {
    part.packed = free;
    free += part.packed_floats();
    if (part.cut.chunks > 1) {
      part.states = free;
      free += part.state_floats();
      merges = true;
    }
    add_tasks(call, part, tasks);
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.cost() > b.cost(); });
  pack_shared(call, parts);
  const auto attend = [&](int64_t i, float* scratch) {
    const Task& task = tasks[i];
    if (task.states != nullptr) {
      float* state = task.states + task.chunk * task.chunk_floats;
      call.kernels.attend_panels(call.params, call.shape, call.scale, task.panel, state, scratch);
      return;
    }
    float* rest = scratch + call.shape.panels(task.panel.num_rows) * call.shape.panel_state;
    call.kernels.attend_panels(call.params, call.shape, call.scale, task.panel, scratch, rest);
    call.kernels.finish_panels(call.params, call.shape, task.panel, scratch, 0, 1, rest);
  };
  run_tasks(tasks.size(), call.scratch_floats, true, attend);
  if (!merges) return;
  std::erase_if(tasks, [](const Task& task) { return task.states == nullptr || task.chunk > 0; });
  run_tasks(tasks.size(), call.scratch_floats, true, [&](int64_t i, float* scratch) {
    const Task& task = tasks[i];
    call.kernels.finish_panels(call.params, call.shape, task.panel, task.states, task.chunk_floats,
                               task.chunks, scratch);
  });
}

}  // namespace

void attend_many_rows(const LazyAttentionParams& params, const LazyAttentionKernels& kernels,
                      const std::vector<Sequence>& sequences) {
  const Call call = prepare(params, kernels);
  std::vector<Part> parts;
  int64_t packed_floats = 0;
  for (const Sequence& sequence : sequences) {
    Part part = {};
    part.sequence = &sequence;
    part.cut = cut(call, sequence);
    part.chunk_floats = call.shape.panels(part.cut.block_rows) * call.shape.panel_state;
    const int64_t keys = part.cut.last_key - part.cut.first_key;
    int64_t heads = params.key.num_kv_heads;  // at once
    if (part.cut.shares_packed()) {
      part.head_floats = divide_up(keys, call.shape.key_block) * call.shape.block_size;
      heads = std::clamp<int64_t>(kPackedFloats / part.head_floats, 1, heads);
    }
    for (int64_t head = 0; head < params.key.num_kv_heads; head += heads) {
      part.first_head = head;
      part.last_head = std::min(head + heads, params.key.num_kv_heads);
      if (packed_floats > 0 && packed_floats + part.packed_floats() > kPackedFloats) {
        attend_parts(call, parts);
        parts.clear();
        packed_floats = 0;
      }
      parts.push_back(part);
      packed_floats += part.packed_floats();
    }
  }
  if (!parts.empty()) attend_parts(call, parts);
}

}  // namespace lazyllm
