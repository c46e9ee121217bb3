// Uninitialized float32 memory for what a kernel keeps between its loops.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace lazyllm {

class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(::operator new[](floats * sizeof(float), kAlignment))) {}

  float* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};  // a cache line, an AVX-512 vector

  struct Free {
    void operator()(float* data) const { ::operator delete[](data, kAlignment); }
  };

  std::unique_ptr<float[], Free> data_;
};

}  // namespace lazyllm
