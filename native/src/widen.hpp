// Weights as floats, whatever they are stored as.
#pragma once

#include "simd.hpp"

namespace openwork::OW_ISA {

OW_INLINE float one(float w) { return w; }
OW_INLINE float one(uint16_t w) {
  const uint32_t bits = static_cast<uint32_t>(w) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
OW_INLINE float one(int8_t w) { return static_cast<float>(w); }

OW_INLINE vf widen(const float* w) { return load(w); }

OW_INLINE vf widen(const uint16_t* w) {
#if defined(__AVX512F__)
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w))), 16));
#elif defined(__AVX2__)
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))), 16));
#else
  return vf{one(w[0]), one(w[1]), one(w[2]), one(w[3])};
#endif
}

OW_INLINE vf widen(const int8_t* w) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w))));
#else
  return vf{one(w[0]), one(w[1]), one(w[2]), one(w[3])};
#endif
}

// Pairs of bfloat16 for W outputs.
struct Pair {
  vf first, second;
};
OW_INLINE Pair load_pair(const uint16_t* w) {
  typedef uint32_t vu __attribute__((vector_size(W * 4)));
  vu both;
  std::memcpy(&both, w, sizeof both);
  if constexpr (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__) both = both << 16 | both >> 16;
  return {reinterpret_cast<vf>(both << 16), reinterpret_cast<vf>(both & 0xffff0000u)};
}

#if defined(__AVX2__)
// Four or eight weights, whatever the vector.
OW_INLINE __m128 four(const float* w) { return _mm_loadu_ps(w); }
OW_INLINE __m128 four(const uint16_t* w) {
  return _mm_castsi128_ps(
      _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w))), 16));
}
OW_INLINE __m128 four(const int8_t* w) {
  int32_t bytes;
  std::memcpy(&bytes, w, 4);
  return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes)));
}

OW_INLINE __m256 eight(const float* w) { return _mm256_loadu_ps(w); }
OW_INLINE __m256 eight(const uint16_t* w) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))), 16));
}
OW_INLINE __m256 eight(const int8_t* w) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w))));
}
#endif

}  // namespace openwork::OW_ISA
