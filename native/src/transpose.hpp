// Squares of W x W floats turned over in registers.
#pragma once

#include "simd.hpp"

namespace openwork::OW_ISA {

template <int S>
OW_INLINE void exchange(vf& a, vf& b) {
  vi low, high;
#pragma GCC unroll 16
  for (int l = 0; l < W; ++l) {
    low[l] = (l & S) != 0 ? W + l - S : l;
    high[l] = (l & S) != 0 ? W + l : l + S;
  }
  const vf x = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = x;
}

template <int S>
OW_INLINE void exchange_all(vf (&r)[W]) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if ((i & S) == 0) exchange<S>(r[i], r[i + S]);
}

OW_INLINE void transpose(vf (&r)[W]) {
  exchange_all<1>(r);
  exchange_all<2>(r);
  if constexpr (W > 4) exchange_all<4>(r);
  if constexpr (W > 8) exchange_all<8>(r);
}

// to[c * to_stride + r] = from[r * from_stride + c] for rows r < W (zeros beyond `rows`) and c < columns.
inline void transpose_strip(const float* from, int64_t from_stride, int rows, int64_t columns, float* to,
                            int64_t to_stride) {
  vf r[W];
  int64_t c = 0;
  for (; c < columns; c += W) {
    const int64_t n = columns - c;
    if (n >= W) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) r[i] = i < rows ? load(from + i * from_stride + c) : vf{};
      transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(to + (c + i) * to_stride, r[i]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) r[i] = i < rows ? load_some(from + i * from_stride + c, n) : vf{};
      transpose(r);
      for (int i = 0; i < n; ++i) store(to + (c + i) * to_stride, r[i]);
    }
  }
}

}  // namespace openwork::OW_ISA
