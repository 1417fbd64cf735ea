// Vectors of one instruction set. Every kernel file is compiled once per set, in a namespace of its own (OW_ISA).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define OW_WIDTH 16
#elif defined(__AVX2__)
#define OW_WIDTH 8
#else
#define OW_WIDTH 4
#endif

#ifndef OW_ISA
#define OW_ISA portable
#endif

#define OW_INLINE inline __attribute__((always_inline))

// Keeps a loaded vector in its register: g++ otherwise folds the load back into every use of it.
#if defined(__x86_64__)
#define OW_HOLD(v) asm("" : "+v"(v))
#else
#define OW_HOLD(v)
#endif

namespace openwork::OW_ISA {

constexpr int W = OW_WIDTH;  // floats in a vector
constexpr int kStreams = 4;   // places of memory read side by side, which is faster than one long stream
typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vfu __attribute__((vector_size(W * 4), aligned(4), may_alias));

OW_INLINE vf load(const float* p) { return *reinterpret_cast<const vfu*>(p); }
OW_INLINE void store(float* p, vf v) { *reinterpret_cast<vfu*>(p) = v; }

OW_INLINE vf splat(float s) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(s);
#elif defined(__AVX2__)
  return _mm256_set1_ps(s);
#else
  return vf{s, s, s, s};
#endif
}

// Four numbers of 16 bits, read at once.
struct FourPlaces {
  uint64_t all;

  OW_INLINE explicit FourPlaces(const uint16_t* p) {
    std::memcpy(&all, p, sizeof all);
    asm("" : "+r"(all));  // or g++ reads each again
  }
  OW_INLINE int64_t operator[](int i) const {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    i = 3 - i;
#endif
    return all >> (16 * i) & 0xffff;
  }
};

// Four floats, read at once; `[i]` fills a vector with one of them, which is fast where there are fast lanes.
#if defined(__AVX512F__)
constexpr bool kFastLanes = true;
struct FourFloats {
  __m512 all;

  OW_INLINE explicit FourFloats(const float* p) : all(_mm512_castps128_ps512(_mm_loadu_ps(p))) { asm("" : "+v"(all)); }
  OW_INLINE vf operator[](int i) const { return _mm512_permutexvar_ps(_mm512_set1_epi32(i), all); }
};
#else
constexpr bool kFastLanes = false;
using FourFloats = const float*;
#endif

OW_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// The first n floats of a vector, zeros behind them; nothing else is read.
OW_INLINE vf load_some(const float* p, long n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  float t[W] = {};
  std::memcpy(t, p, n * sizeof(float));
  return load(t);
#endif
}

OW_INLINE void store_some(float* p, vf v, long n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#else
  float t[W];
  store(t, v);
  std::memcpy(p, t, n * sizeof(float));
#endif
}

// Which floats of a vector there are; the others are zeros and not even read.
#if defined(__AVX512F__)
using Lanes = __mmask16;
#else
using Lanes = vi;
#endif

OW_INLINE Lanes lanes_of(uint32_t bits) {
#if defined(__AVX512F__)
  return static_cast<__mmask16>(bits);
#else
  vi lanes;
  for (int i = 0; i < W; ++i) lanes[i] = -static_cast<int32_t>(bits >> i & 1);
  return lanes;
#endif
}

OW_INLINE vf load_lanes(const float* p, Lanes lanes) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(lanes, p);
#elif defined(__AVX2__)
  return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(lanes));
#else
  vf v{};
  for (int i = 0; i < W; ++i)
    if (lanes[i] != 0) v[i] = p[i];
  return v;
#endif
}

// Copies n floats, few as a rule; the last vectors may overlap.
OW_INLINE void copy_run(const float* from, int64_t n, float* to) {
  if (n < W) return store_some(to, load_some(from, std::max<int64_t>(n, 0)), std::max<int64_t>(n, 0));
  for (int64_t i = 0; i + W < n; i += W) store(to + i, load(from + i));
  store(to + n - W, load(from + n - W));
}

OW_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
OW_INLINE vf min(vf a, vf b) { return a < b ? a : b; }

}  // namespace openwork::OW_ISA
