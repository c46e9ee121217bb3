// How CPU kernels scale their logits.
#pragma once

#include <cmath>

namespace lazyllm {

// Logits stay as the dot products come, since every factor rounds once more; the scale enters with
// the step to base 2: e^(scale * (x - y)) = 2^(log2 * x - log2 * y). A soft cap takes it in before.
struct LogitScale {
  LogitScale(double scale, double softcap)
      : query(scale > 0.0   ? 1.0f
              : scale < 0.0 ? -1.0f
                            : 0.0f),
        cap(static_cast<float>(softcap)),
        into_cap(static_cast<float>(softcap > 0.0 ? std::abs(scale) / softcap : 0.0)),
        log2(static_cast<float>(softcap > 0.0 || scale == 0.0 ? kLog2E
                                                              : std::abs(scale) * kLog2E)) {}

  float query;  // what queries are multiplied with: the sign of the scale
  float cap;    // logit = cap * tanh(into_cap * x); 0: none
  float into_cap;
  float log2;

 private:
  static constexpr double kLog2E = 1.4426950408889634;
};

}  // namespace lazyllm
