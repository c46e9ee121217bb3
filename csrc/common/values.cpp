#include "values.h"

#include <stdexcept>

namespace lazyllm {

using std::to_string;

void refuse(const char* op, const char* argument, const std::string& expected,
            const std::string& got) {
  throw std::runtime_error(std::string("lazyllm::") + op + ": " + argument + ": expected " +
                           expected + ", got " + got);
}

void check_offset_values(const char* op, const char* argument, const int64_t* offsets,
                         int64_t batch, int64_t end) {
  if (offsets[0] != 0) refuse(op, argument, "0 first", to_string(offsets[0]));
  for (int64_t b = 0; b < batch; ++b) {
    if (offsets[b + 1] < offsets[b]) {
      refuse(op, argument, "ascending offsets",
             to_string(offsets[b]) + " before " + to_string(offsets[b + 1]));
    }
  }
  if (offsets[batch] != end) {
    refuse(op, argument, to_string(end) + " last", to_string(offsets[batch]));
  }
}

void check_index_values(const char* op, const char* argument, const int64_t* index, int64_t count,
                        int64_t limit) {
  // Two bounds in one comparison, so that the loop is a vector reduction: -1 becomes 0.
  bool outside = false;
  for (int64_t i = 0; i < count; ++i) {
    outside |= static_cast<uint64_t>(index[i]) + 1 > static_cast<uint64_t>(limit);
  }
  if (!outside) return;
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] < -1 || index[i] >= limit) {
      refuse(op, argument, "-1 to " + to_string(limit - 1),
             to_string(index[i]) + " at place " + to_string(i));
    }
  }
}

}  // namespace lazyllm
