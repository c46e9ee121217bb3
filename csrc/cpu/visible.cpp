#include "visible.h"

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>

#include "../common/values.h"

namespace lazyllm {
namespace {

// The used keys of sequence b; `index` gets their token indices [num_keys].
const int64_t* use_keys(const Keys& keys, int64_t b, Sequence& sequence) {
  const int64_t first = keys.offsets[b];
  int64_t last = keys.offsets[b + 1];
  // Unused places at the end are common (a table with room to grow), others are rare.
  while (last > first && keys.slots[last - 1] < 0) --last;
  bool holes = false;
  for (int64_t k = first; k < last; ++k) holes |= keys.slots[k] < 0;
  if (!holes) {
    sequence.slots = keys.slots + first;
    sequence.num_keys = last - first;
    sequence.places = nullptr;
    sequence.first_place = first;
    return keys.index + first;
  }
  std::vector<int64_t> used;
  for (int64_t k = first; k < last; ++k) {
    if (keys.slots[k] >= 0) used.push_back(k);
  }
  const int64_t count = static_cast<int64_t>(used.size());
  sequence.compacted.resize(3 * count);
  int64_t* slots = sequence.compacted.data();
  int64_t* index = slots + count;
  for (int64_t i = 0; i < count; ++i) {
    slots[i] = keys.slots[used[i]];
    index[i] = keys.index[used[i]];
  }
  std::copy(used.begin(), used.end(), index + count);
  sequence.slots = slots;
  sequence.num_keys = count;
  sequence.places = index + count;
  sequence.first_place = 0;
  return index;
}

void check_ascending(const char* op, const int64_t* index, int64_t count) {
  bool ascending = true;
  for (int64_t i = 1; i < count; ++i) ascending &= index[i - 1] <= index[i];
  if (ascending) return;
  int64_t i = 1;
  while (index[i - 1] <= index[i]) ++i;
  refuse(op, "key_index", "ascending indices in a sequence",
         std::to_string(index[i]) + " after " + std::to_string(index[i - 1]));
}

// How many of the ascending `index` [count] are <= limit. Guesses `guess` or one more first: the
// rows of a prefill see one key more each.
int64_t count_up_to(const int64_t* index, int64_t count, int64_t limit, int64_t guess) {
  for (int64_t n = guess; n <= guess + 1 && n <= count; ++n) {
    if ((n == 0 || index[n - 1] <= limit) && (n == count || index[n] > limit)) return n;
  }
  return std::upper_bound(index, index + count, limit) - index;
}

}  // namespace

Sequence visible_sequence(const char* op, const Queries& queries, const Keys& keys, int64_t b,
                          int64_t window) {
  Sequence sequence;
  const int64_t* index = use_keys(keys, b, sequence);
  check_ascending(op, index, sequence.num_keys);
  if (sequence.num_keys > std::numeric_limits<int32_t>::max()) {
    refuse(op, "key_slots", "fewer than 2^31 keys in a sequence",
           std::to_string(sequence.num_keys));
  }
  int64_t begin = 0, end = 0;
  for (int64_t row = queries.offsets[b]; row < queries.offsets[b + 1]; ++row) {
    const int64_t place = queries.index[row];
    if (place < 0) continue;
    end = count_up_to(index, sequence.num_keys, place, end);
    if (window > 0) begin = count_up_to(index, sequence.num_keys, place - window, begin);
    if (begin >= end) continue;
    sequence.rows.push_back({row, static_cast<int32_t>(begin), static_cast<int32_t>(end)});
  }
  const auto before = [](const VisibleRow& a, const VisibleRow& b) {
    return std::tie(a.end, a.begin) < std::tie(b.end, b.begin);
  };
  if (!std::is_sorted(sequence.rows.begin(), sequence.rows.end(), before)) {
    std::stable_sort(sequence.rows.begin(), sequence.rows.end(), before);
  }
  return sequence;
}

}  // namespace lazyllm
