// What becomes of the sums of a register tile of blocks.
#pragma once

#include <algorithm>

#include "act.hpp"
#include "block.hpp"
#include "past.hpp"

namespace openwork::OW_ISA {

template <int MT, int NV>
OW_INLINE void write_tile(const Tile& t, const vf (&acc)[MT][NV]) {
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const int64_t n = t.outputs - v * W;
    if (n <= 0) return;
    float* y = t.y + v * W;
    const float* residual = t.residual == nullptr ? nullptr : t.residual + v * W;
    const vf bias = t.bias == nullptr ? vf{} : n >= W ? load(t.bias + v * W) : load_some(t.bias + v * W, n);
#pragma GCC unroll 24
    for (int m = 0; m < MT; ++m) {
      vf sum = acc[m][v] + bias;
      if (n >= W) {
        if (residual != nullptr) sum += load(residual + m * t.y_stride);
        if (t.act == kRelu) sum = activate(sum, kRelu);
        put_line(y + m * t.y_stride, sum, t.past);
      } else {
        if (residual != nullptr) sum += load_some(residual + m * t.y_stride, n);
        if (t.act == kRelu) sum = activate(sum, kRelu);
        store_some(y + m * t.y_stride, sum, n);
      }
    }
  }
}

// The dearer activations run over the outputs once more, while they are in the cache.
inline void activate_tile(float* y, int64_t y_stride, int tokens, int64_t outputs, int act) {
  for (int m = 0; m < tokens; ++m, y += y_stride) {
    int64_t i = 0;
    for (; i + W <= outputs; i += W) store(y + i, activate(load(y + i), act));
    if (i < outputs) store_some(y + i, activate(load_some(y + i, outputs - i), act), outputs - i);
  }
}

}  // namespace openwork::OW_ISA
