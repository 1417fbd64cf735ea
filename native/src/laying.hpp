// What every way of laying images out shares: rows of positions, and how many images at once.
#pragma once

#include <algorithm>

#include "kernels.hpp"
#include "transpose.hpp"

namespace openwork::OW_ISA {

// A row of `length` positions: [low, high) read `from` every `stride` floats, the others are zeros.
OW_INLINE void lay_row(const float* from, int64_t low, int64_t high, int64_t length, int64_t stride, float* out) {
  for (int64_t i = 0; i < low; ++i) out[i] = 0.0f;
  if (stride == 1)
    copy_run(from + low, high - low, out + low);
  else
    for (int64_t i = low; i < high; ++i) out[i] = from[i * stride];
  for (int64_t i = high; i < length; ++i) out[i] = 0.0f;
}

// The same of rows `apart` floats from each other, side by side in `out`. A vector that is written whole costs a
// fraction of one of which a part is written.
inline void lay_rows(const float* from, int64_t apart, int64_t rows, int64_t low, int64_t high, int64_t length,
                     int64_t stride, float* out) {
  if (stride != 1 || length % W != 0) {
    for (int64_t r = 0; r < rows; ++r) lay_row(from + r * apart, low, high, length, stride, out + r * length);
    return;
  }
  for (int64_t i = 0; i < length; i += W) {
    const uint32_t behind = (1u << std::clamp<int64_t>(high - i, 0, W)) - 1;
    const uint32_t before = (1u << std::clamp<int64_t>(low - i, 0, W)) - 1;
    const Lanes there = lanes_of(behind & ~before);
    for (int64_t r = 0; r < rows; ++r) store(out + r * length + i, load_lanes(from + r * apart + i, there));
  }
}

// The same of `channels` channels that lie side by side, positions `step` floats apart; rows of `out` are `apart`.
inline void turn_rows(const float* from, int64_t low, int64_t high, int64_t length, int64_t step, int64_t channels,
                      float* out, int64_t apart) {
  vf r[W];
  for (int64_t i0 = 0; i0 < length; i0 += W) {
    const int64_t many = std::min<int64_t>(W, length - i0);
    for (int64_t c = 0; c < channels; c += W) {
      const int64_t wide = std::min<int64_t>(W, channels - c);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        r[i] = i0 + i >= low && i0 + i < high ? load_some(from + (i0 + i) * step + c, wide) : vf{};
      transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        if (i >= wide) break;
        float* to = out + (c + i) * apart + i0;
        many == W ? store(to, r[i]) : store_some(to, r[i], many);
      }
    }
  }
}

// Images of so many floats that are laid out together: what fits the second caches of the threads, and at least one
// for each thread.
inline int64_t together(int64_t batch, int64_t image, int threads) {
  const int64_t fit = (int64_t{512} << 10) * threads / std::max<int64_t>(1, image * 4);
  return std::min(batch, std::max<int64_t>(fit, threads));
}

}  // namespace openwork::OW_ISA
