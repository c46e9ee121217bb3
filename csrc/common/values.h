// The sentence about a wrong argument, and checks of what arrays of offsets and indices hold:
//   lazyllm::<op>: <argument>: expected <this>, got <that>
// Only the CPU looks at values: on a GPU that would wait for the device.
#pragma once

#include <cstdint>
#include <string>

namespace lazyllm {

[[noreturn]] void refuse(const char* op, const char* argument, const std::string& expected,
                         const std::string& got);

// offsets[0] == 0, none smaller than the one before, offsets[batch] == end.
void check_offset_values(const char* op, const char* argument, const int64_t* offsets,
                         int64_t batch, int64_t end);

// -1 <= index[i] < limit.
void check_index_values(const char* op, const char* argument, const int64_t* index, int64_t count,
                        int64_t limit);

}  // namespace lazyllm
