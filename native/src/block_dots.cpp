// Tokens rounded to int8 through blocks of int8 weights: the processor adds four products to a whole number at once.
// A token's numbers become q = round(127 x / max |x|), kept as q + 128 since one factor has no sign; what the 128 add
// to a sum depends on the output only and is taken off.
#include <cmath>
#include <limits>
#include <type_traits>

#include "act.hpp"
#include "block.hpp"
#include "past.hpp"
#include "pool.hpp"
#include "transpose.hpp"

namespace openwork::OW_ISA {
namespace {

constexpr int64_t kMost = 14;            // tokens in a register tile that is two vectors wide
constexpr int64_t kFew = 4;              // up to which reading the weights takes the time
constexpr int64_t kAhead = 4096;         // bytes of weights that are fetched ahead for those
constexpr int64_t kLane = W;             // words of four inputs, from one to the next of a packed tile
constexpr int64_t kTogether = 64 << 10;  // weights that pass over a super-tile together

struct Strip {
  const int32_t* x;  // packed tile
  const float* factors;  // of its tokens
  const int32_t* inputs;
  int64_t blocks, depth, height;
  const int8_t* w;
  bool past;
};

// The intrinsic makes g++ 12 move sums to memory and back.
OW_INLINE __m512i add_dots(__m512i sum, __m512i x, __m512i w) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  return sum;
}

template <int MT, int NV, typename T>
OW_INLINE void sum_strip(const Strip& s, const T* y, int64_t stride, __m512i (&acc)[MT][NV]) {
  const int8_t* w = s.w;
  const int64_t row = 4 * s.height;
  constexpr int kAtOnce = 5;
  int fetched = 0;
  for (int64_t b = 0; b < s.blocks; ++b) {
    for (int m = 0; m < kAtOnce && fetched < MT; ++m, ++fetched, y += stride) {
      if (s.past) continue;
      __builtin_prefetch(y, 1);
      if (sizeof(T) * NV * W > 64) __builtin_prefetch(y + W, 1);
    }
    const int32_t* x = s.x + s.inputs[b] / 4 * kLane;
    for (int64_t k = 0; k < s.depth; k += 4, x += kLane, w += row) {
      __m512i wv[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        wv[v] = _mm512_loadu_si512(w + v * 4 * W);
        if constexpr (MT <= kFew) _mm_prefetch(w + v * 4 * W + kAhead, _MM_HINT_T0);
      }
#pragma GCC unroll 16
      for (int m = 0; m < MT; ++m) {
        const __m512i xs = _mm512_set1_epi32(x[m]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) acc[m][v] = add_dots(acc[m][v], xs, wv[v]);
      }
    }
  }
}

// Numbers of tokens, float32 or bfloat16, as vectors of float32.
OW_INLINE vf read(const float* p, int64_t n) { return n == W ? load(p) : load_some(p, n); }
OW_INLINE vf read(const uint16_t* p, int64_t n) {
  const auto some = static_cast<__mmask16>((1u << n) - 1);
  const __m256i v = n == W ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)) : _mm256_maskz_loadu_epi16(some, p);
  return reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

OW_INLINE void put(float* p, vf v, int64_t n) { n == W ? store(p, v) : store_some(p, v, n); }
OW_INLINE void put(uint16_t* p, vf v, int64_t n) {  // rounded to the nearest, to the even one of two; a NaN stays one
  const auto bits = reinterpret_cast<__m512i>(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  up = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  const __m256i half = _mm512_cvtepi32_epi16(up);
  if (n == W) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), half);
}

// Where a tile's outputs go, from `first` on.
template <typename T>
struct Out {
  const DotWeights& b;
  const float* bias;
  const T* residual;
  int act;
  int64_t first, stride;
  T* y;  // first token
  bool past;
};

// The end of the sums of one vector of outputs: `count` of them, from `n` on.
template <int MT, int NV, bool whole, typename T>
OW_INLINE void write(const __m512i (&acc)[MT][NV], int v, const float* factors, const Out<T>& o, int64_t n, int64_t some) {
  const int64_t stride = o.stride, count = whole ? W : some;
  const int act = o.act;
  T* y = o.y + n;
  const T* residual = o.residual == nullptr ? nullptr : o.residual + n;
  const vf scale = load(o.b.scales + n), bias = o.bias == nullptr ? vf{} : load_some(o.bias + n, count);
  const auto end = [&](int m) {
    vf out = fma(_mm512_cvtepi32_ps(acc[m][v]), scale * splat(factors[m]), bias);
    if (residual != nullptr) out += read(residual + m * stride, count);
    return out;
  };
  const auto out = [&](int m, vf sum) {
    if constexpr (whole && sizeof(T) == 4) return put_line(y + m * stride, sum, o.past);
    put(y + m * stride, sum, count);
  };
  if (act == kNone) {
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) out(m, end(m));
  } else if (act == kRelu) {
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) out(m, activate(end(m), kRelu));
  } else {
    vf sums[MT];
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) sums[m] = end(m);
    for (int m = 0; m < MT; ++m) out(m, activate(sums[m], act));
  }
}

template <int MT, int NV, typename T>
void tile(const Strip& s, const Out<T>& o) {
  __m512i acc[MT][NV];
  const T* y = o.y + o.first;
#pragma GCC unroll 2
  for (int v = 0; v < NV; ++v) {
    const __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(o.b.sums + o.first + v * W));
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) acc[m][v] = start;
  }
  sum_strip<MT, NV>(s, y, o.stride, acc);
#pragma GCC unroll 2
  for (int v = 0; v < NV; ++v) {
    const int64_t n = o.first + v * W, count = std::min<int64_t>(W, o.b.outputs - n);
    if (count == W) write<MT, NV, true>(acc, v, s.factors, o, n, count);
    else if (count > 0) write<MT, NV, false>(acc, v, s.factors, o, n, count);
  }
}

template <typename T>
using Run = void (*)(const Strip&, const Out<T>&);
template <int NV, typename T, int MT = kMost>
Run<T> run_of(int64_t tokens) {
  if constexpr (MT > 1) {
    if (tokens < MT) return run_of<NV, T, MT - 1>(tokens);
  }
  return tile<MT, NV, T>;
}

// The largest magnitude; a NaN is larger than all others.
template <typename T>
float top_of(const T* x, int64_t n) {
  __m512i top = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t i = 0; i < n; i += W) {
    const vf v = read(x + i, std::min<int64_t>(W, n - i));
    top = _mm512_max_epi32(top, _mm512_and_si512(reinterpret_cast<__m512i>(v), magnitude));
  }
  const int32_t bits = _mm512_reduce_max_epi32(top);
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

// Rounds a token to bytes, 128 beyond the inputs, and returns what a step is worth.
template <typename T>
float round_token(const T* x, int64_t inputs, int64_t padded, uint8_t* to) {
  const float top = top_of(x, inputs);
  const bool any = top > 0 && std::isfinite(top);
  const vf factor = splat(any ? std::min(127.0f / top, std::numeric_limits<float>::max()) : 0.0f);
  const __m512i zero = _mm512_set1_epi32(128);
  if (!any) std::fill(to, to + padded, uint8_t{128});  // infinite or NaN: what is returned tells it
  const auto bytes = [&](vf v) {
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(v * factor), zero));
  };
  int64_t i = any ? 0 : padded;
#pragma GCC unroll 4
  for (; i + W <= inputs; i += W) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), bytes(read(x + i, W)));
  for (; i < padded; i += W) {
    const int64_t n = std::clamp<int64_t>(inputs - i, 0, W), room = std::min<int64_t>(W, padded - i);
    _mm_mask_storeu_epi8(to + i, static_cast<__mmask16>((1u << room) - 1), bytes(read(x + i, n)));
  }
  return top / 127.0f;
}

// Tokens [first, first + tokens) as [four inputs][token].
template <typename A>
void pack_tile(const A& a, int64_t first, int64_t tokens, int64_t padded, int32_t* to, float* factors) {
  float* rows = scratch(2, tokens * (padded / 4 + W));
  const int64_t row = padded / 4 + W;  // apart from each other in the first cache
  for (int64_t m = 0; m < tokens; ++m)
    factors[m] = round_token(a.x + (first + m) * a.x_stride, a.inputs, padded, reinterpret_cast<uint8_t*>(rows + m * row));
  transpose_strip(rows, row, static_cast<int>(tokens), padded / 4, reinterpret_cast<float*>(to), kLane);
}

template <typename E, typename A>
void run(const DotWeights& b, const E& e, const A& a, int threads) {
  using T = std::remove_pointer_t<decltype(a.y)>;
  const int64_t padded = (a.inputs + b.depth - 1) / b.depth * b.depth, run = padded / 4 * kLane;
  const int64_t tiles = (a.tokens + kMost - 1) / kMost;
  bool past = false;
  if constexpr (sizeof(T) == 4) past = passes(a.y, a.tokens, a.y_stride);
  auto [supers, parts] = shared_out(b, tiles, run * 4, threads);
  if (parts > 1 && tiles >= 4 * threads) {  // every part would round the tokens anew
    supers = (supers + threads - 1) / threads * threads;
    parts = 1;
  }
  parallel(supers * parts, threads, [&, supers = supers, parts = parts](int64_t task) {
    const int64_t super = task / parts, part = task % parts;
    const int64_t t0 = super * tiles / supers * kMost;
    const int64_t t1 = std::min(a.tokens, (super + 1) * tiles / supers * kMost), count = t1 - t0;
    const int64_t s0 = first_strip(b, part, parts), s1 = first_strip(b, part + 1, parts);
    if (s0 >= s1 || count <= 0) return;
    // All tiles have as many tokens; the last one may begin inside the one before it.
    const int64_t tokens = std::min(kMost, count), runs = (count + tokens - 1) / tokens;
    auto* packed = reinterpret_cast<int32_t*>(scratch(0, runs * run));
    float* factors = scratch(1, runs * W);
    for (int64_t r = 0; r < runs; ++r)
      pack_tile(a, t0 + std::min(r * tokens, count - tokens), tokens, padded, packed + r * run, factors + r * W);
    const Run<T> one = run_of<1, T>(tokens), two = run_of<2, T>(tokens);
    const int64_t size = b.depth * b.height;
    for (int64_t g0 = s0, g1; g0 < s1; g0 = g1) {
      g1 = group_end(b, g0, s1, kTogether);
      for (int64_t r = 0; r < runs; ++r) {
        const int64_t place = (t0 + std::min(r * tokens, count - tokens)) * a.y_stride;
        for (int64_t s = g0; s < g1; ++s) {
          const int64_t from = b.starts[s];
          const auto* w = static_cast<const int8_t*>(b.values) + from * size;
          for (int64_t down = 0; down < b.height && s * b.height + down < b.outputs; down += 2 * W) {
            const Strip strip{packed + r * run, factors + r * W, b.inputs + from, b.starts[s + 1] - from, b.depth,
                              b.height, w + down * 4, past};
            const Out<T> out{b, e.bias, e.residual == nullptr ? nullptr : e.residual + place, e.act,
                             s * b.height + down, a.y_stride, a.y + place, past};
            (b.height - down > W ? two : one)(strip, out);
          }
        }
      }
    }
  });
}

}  // namespace

void block_dots(const DotWeights& b, const Epilogue& e, const Tokens& a, int threads) { run(b, e, a, threads); }

void block_dots_half(const DotWeights& b, const HalfEpilogue& e, const HalfTokens& a, int threads) {
  run(b, e, a, threads);
}

}  // namespace openwork::OW_ISA
