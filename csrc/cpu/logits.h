// How CPU kernels scale their logits.
#pragma once

namespace lazyllm {

// Logits are kept in units of ln 2, and 2^x stands for e^x. `query` is what a query is multiplied
// with: its dot products are then logits, or with a soft cap the argument of tanh, `cap` its factor.
struct LogitScale {
  LogitScale(float scale, float softcap)
      : query(softcap > 0.0f ? scale / softcap : scale * kLog2E), cap(softcap * kLog2E) {}

  float query;
  float cap;  // 0: none

 private:
  static constexpr float kLog2E = 1.44269504088896341f;
};

}  // namespace lazyllm
