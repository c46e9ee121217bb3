#include <cstring>

#include "../common/values.h"
#include "../cpu/parallel.h"
#include "kv_append.h"

namespace lazyllm {
namespace {

// One token's keys or values of all heads: [num_kv_heads, head_dim] from and to any head stride.
void append(const KvAppendParams& p, const KvAppendSide& side, int64_t token, int64_t slot) {
  const int64_t head_bytes = p.head_dim * p.element_bytes;
  const char* from =
      static_cast<const char*>(side.from) + token * side.from_token_stride * p.element_bytes;
  char* to = static_cast<char*>(side.to) + slot * side.to_slot_stride * p.element_bytes;
  if (side.from_head_stride == p.head_dim && side.to_head_stride == p.head_dim) {
    std::memcpy(to, from, p.num_kv_heads * head_bytes);
    return;
  }
  for (int64_t head = 0; head < p.num_kv_heads; ++head) {
    std::memcpy(to + head * side.to_head_stride * p.element_bytes,
                from + head * side.from_head_stride * p.element_bytes, head_bytes);
  }
}

void append_all(const KvAppendParams& p, const KvAppendSide& side, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    if (p.slots[token] >= 0) append(p, side, token, p.slots[token]);
  }
}

}  // namespace

void kv_append_cpu(const KvAppendParams& p) {
  check_index_values("kv_append_", "slots", p.slots, p.tokens, p.num_slots);
  const int64_t token_bytes = 2 * p.num_kv_heads * p.head_dim * p.element_bytes;
  copy_in_parallel(p.tokens, token_bytes, [&](int64_t begin, int64_t end) {
    append_all(p, p.key, begin, end);
    append_all(p, p.value, begin, end);
  });
}

}  // namespace lazyllm
