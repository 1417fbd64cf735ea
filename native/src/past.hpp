// Outputs that no cache would keep until they are read go past the caches: a line that is written so is not read first.
#pragma once

#include "simd.hpp"

namespace openwork::OW_ISA {

constexpr int64_t kKept = 16 << 20;  // bytes of outputs that half of a usual last cache keeps

// Whether the outputs of `tokens` tokens, `stride` apart, do so: only whole lines can, and only in one instruction.
inline bool passes(const float* y, int64_t tokens, int64_t stride) {
  return W == 16 && tokens * stride * 4 >= kKept && stride % W == 0 && reinterpret_cast<uintptr_t>(y) % 64 == 0;
}

OW_INLINE void put_line(float* p, vf v, bool past) {
#if defined(__AVX512F__)
  if (past) return _mm512_stream_ps(p, reinterpret_cast<__m512>(v));  // other threads see it after the fence of `parallel`
#endif
  store(p, v);
}

}  // namespace openwork::OW_ISA
