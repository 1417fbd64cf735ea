// Tiles of tokens in bfloat16 through a strip of bfloat16 blocks, in the processor's own arithmetic for them: matrix
// tiles (AMX) or dot products of pairs. Sums are float32.
#pragma once

#include "act.hpp"
#include "block.hpp"
#include "pool.hpp"

namespace openwork::OW_ISA {

constexpr int kWide = 2 * W;  // outputs of a tile, and floats from one of its tokens to the next

// The tokens of a tile, in one or two runs of as many as a register tile holds, through the blocks of a strip.
struct Strip {
  const uint16_t* x;
  int64_t row, low;  // from token to token, and to the second run; row 0: tokens are packed
  const int32_t* inputs;
  int64_t blocks, depth, height;
  const uint16_t* w;
};

#if defined(__AMX_BF16__)

constexpr int64_t kRun = 16, kRuns = 2;  // tokens
constexpr int64_t kTogether = 256 << 10;  // weights that pass over a super-tile together: a quarter of the second cache

// Inputs that one tile instruction takes.
inline int64_t step_of(int64_t depth) {
  int64_t step = 32;
  while (depth % step != 0) step /= 2;
  return step;
}

// Tiles 0 to 3 hold sums (tokens' half, outputs' half), 4 and 5 tokens, 6 and 7 weights.
class Tiles {
 public:
  Tiles(int64_t top, int64_t low, int64_t depth) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, unused[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } c;
    const int64_t step = step_of(depth);
    const auto set = [&](int tile, int64_t rows, int64_t bytes) {
      c.rows[tile] = static_cast<uint8_t>(rows);
      c.bytes[tile] = static_cast<uint16_t>(rows == 0 ? 0 : bytes);
    };
    for (int tile = 0; tile < 4; ++tile) set(tile, tile < 2 ? top : low, 64);
    set(4, top, step * 2);
    set(5, low, step * 2);
    set(6, step / 2, 64);
    set(7, step / 2, 64);
    asm volatile("" : : "r"(&c) : "memory");  // g++ takes the instruction to read eight bytes, and drops other stores
    _tile_loadconfig(&c);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// The vectors' units are free while tiles are multiplied: they do something else `meanwhile`.
template <bool Two, bool Both, typename Else>
OW_INLINE void sum_strip(const Strip& s, float* sums, const Else& meanwhile) {
  asm volatile("" : : : "memory");  // g++ does not see that loads of tiles read what was stored before
  _tile_zero(0);
  if constexpr (Both) _tile_zero(1);
  if constexpr (Two) _tile_zero(2);
  if constexpr (Two && Both) _tile_zero(3);
  const int64_t step = step_of(s.depth), token = s.row * 2, pair = s.height * 4;
  const uint16_t* w = s.w;
  for (int64_t b = 0; b < s.blocks; ++b) {
    const uint16_t* x = s.x + s.inputs[b];
    for (int64_t k = 0; k < s.depth; k += step, x += step, w += step * s.height) {
      _tile_loadd(4, x, token);
      _tile_loadd(6, w, pair);
      if constexpr (Both) _tile_loadd(7, w + kWide, pair);
      if constexpr (Two) _tile_loadd(5, x + s.low, token);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (Both) _tile_dpbf16ps(1, 4, 7);
      if constexpr (Two) _tile_dpbf16ps(2, 5, 6);
      if constexpr (Two && Both) _tile_dpbf16ps(3, 5, 7);
    }
  }
  meanwhile();
  _tile_stored(0, sums, kWide * 4);
  if constexpr (Both) _tile_stored(1, sums + W, kWide * 4);
  if constexpr (Two) _tile_stored(2, sums + 16 * kWide, kWide * 4);
  if constexpr (Two && Both) _tile_stored(3, sums + 16 * kWide + W, kWide * 4);
}

template <typename Else>
OW_INLINE void sum_strip(const Strip& s, int64_t, int64_t low, bool both, float* sums, const Else& meanwhile) {
  if (low > 0)
    both ? sum_strip<true, true>(s, sums, meanwhile) : sum_strip<true, false>(s, sums, meanwhile);
  else
    both ? sum_strip<false, true>(s, sums, meanwhile) : sum_strip<false, false>(s, sums, meanwhile);
}

#else

constexpr int64_t kRun = 14, kRuns = 1;
constexpr int kLane = 2 * W;  // numbers from a pair of inputs of packed tokens to the next
constexpr int64_t kTogether = 64 << 10;

struct Tiles {
  Tiles(int64_t, int64_t, int64_t) {}
};

template <int MT, int NV, bool packed>
void sum_tile(const Strip& s, float* sums) {
  vf acc[MT][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MT; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[m][v] = vf{};
  const uint16_t* w = s.w;
  for (int64_t b = 0; b < s.blocks; ++b) {
    const uint16_t* x = s.x + s.inputs[b] * (packed ? kLane / 2 : 1);
    for (int64_t k = 0; k < s.depth; k += 2, x += packed ? kLane : 2, w += 2 * s.height) {
      __m512bh wv[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) wv[v] = reinterpret_cast<__m512bh>(_mm512_loadu_ps(w + v * 2 * W));
#pragma GCC unroll 16
      for (int m = 0; m < MT; ++m) {
        int32_t two;
        std::memcpy(&two, x + m * (packed ? 2 : s.row), sizeof two);
        const auto xs = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], xs, wv[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MT; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(sums + m * kWide + v * W, acc[m][v]);
}

template <int NV, int MT = kRun>
void sum_of(const Strip& s, int64_t tokens, float* sums) {
  if constexpr (MT > 1) {
    if (tokens < MT) return sum_of<NV, MT - 1>(s, tokens, sums);
  }
  s.row == 0 ? sum_tile<MT, NV, true>(s, sums) : sum_tile<MT, NV, false>(s, sums);
}

template <typename Else>
void sum_strip(const Strip& s, int64_t top, int64_t, bool both, float* sums, const Else& meanwhile) {
  meanwhile();
  both ? sum_of<2>(s, top, sums) : sum_of<1>(s, top, sums);
}

#endif

// A range of blocks as pairs: themselves, or int8 times its scales, rounded, in `room`.
inline const uint16_t* paired(const BlockWeights& b, int64_t first, int64_t last, float* (*room)(int, size_t)) {
  const int64_t size = b.depth * b.height;
  if (b.store == kPairs) return static_cast<const uint16_t*>(b.values) + first * size;
  auto* pairs = reinterpret_cast<uint16_t*>(room(2, ((last - first) * size + 1) / 2));
  uint16_t* to = pairs;
  for (int64_t i = first; i < last; ++i) {
    const int8_t* from = static_cast<const int8_t*>(b.values) + i * size;
    const vf factor = splat(b.scales[i]);
    for (int64_t k = 0; k < b.depth; k += 2, from += 2 * b.height)
      for (int64_t n = 0; n < b.height; n += W, to += 2 * W) {
        const auto half = [&](const int8_t* w) {
          return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(widen(w) * factor)));
        };
        _mm512_storeu_si512(to, _mm512_or_si512(half(from + n), _mm512_slli_epi32(half(from + b.height + n), 16)));
      }
  }
  return pairs;
}

OW_INLINE vf finished(vf sum, __m256i residual, int act) {
  sum += reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(residual), 16));
  return act == kNone ? sum : activate(sum, act);
}

// Finished sums that are to become outputs [first, first + count) of the tokens of two runs.
struct Sums {
  const float* at;
  int64_t top, low, first, count;
  int64_t place, low_place;  // of the runs in y and in the residual
};

inline void write_run(const float* sums, int64_t tokens, const Sums& s, int64_t place, const HalfEpilogue& e,
                      int64_t stride, uint16_t* to) {
  const float* bias = e.bias == nullptr ? nullptr : e.bias + s.first;
  uint16_t* y = to + place;
  const uint16_t* residual = e.residual == nullptr ? nullptr : e.residual + place;
  if (s.count == kWide) {  // a whole line of the cache
    const vf low = bias == nullptr ? vf{} : load(bias), high = bias == nullptr ? vf{} : load(bias + W);
    __m512i more = _mm512_setzero_si512();
    for (int64_t m = 0; m < tokens; ++m) {
      if (residual != nullptr) more = _mm512_loadu_si512(residual + m * stride);
      const vf one = finished(load(sums + m * kWide) + low, _mm512_castsi512_si256(more), e.act);
      const vf two = finished(load(sums + m * kWide + W) + high, _mm512_extracti64x4_epi64(more, 1), e.act);
      _mm512_storeu_si512(y + m * stride, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(two, one)));
    }
    return;
  }
  for (int64_t i = 0; i < s.count; i += W) {
    const int64_t n = std::min<int64_t>(W, s.count - i);
    const auto mask = static_cast<__mmask16>((1u << n) - 1);
    const vf b = bias == nullptr ? vf{} : load_some(bias + i, n);
    for (int64_t m = 0; m < tokens; ++m) {
      const __m256i more =
          residual == nullptr ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(mask, residual + m * stride + i);
      const vf sum = finished(load(sums + m * kWide + i) + b, more, e.act);
      _mm256_mask_storeu_epi16(y + m * stride + i, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum)));
    }
  }
}

inline void write(const Sums& s, const HalfEpilogue& e, int64_t stride, uint16_t* y) {
  write_run(s.at, s.top, s, s.place, e, stride, y);
  write_run(s.at + kRun * kWide, s.low, s, s.low_place, e, stride, y);
}

// Tiles of tokens through strips, one after another: the sums of one are written while the next is multiplied.
class Products {
 public:
  // `inputs` of the blocks, `row` from token to token, `stride` from output to output of a token.
  Products(const BlockWeights& b, const HalfEpilogue& e, const int32_t* inputs, int64_t row, int64_t stride, uint16_t* y)
      : b_(b), e_(e), inputs_(inputs), row_(row), stride_(stride), y_(y), room_(scratch(1, 2 * kRun * kRuns * kWide)),
        done_{room_, 0, 0, 0, 0, 0, 0} {}

  // Strips [s0, s1), whose weights begin at `w`, for runs of `top` and `low` tokens, which lie `apart` in x.
  OW_INLINE void add(int64_t s0, int64_t s1, const uint16_t* w, const uint16_t* x, int64_t apart, int64_t top,
                     int64_t low, int64_t place, int64_t low_place) {
    const int64_t first = b_.starts[s0], size = b_.depth * b_.height;
    for (int64_t s = s0; s < s1; ++s)
      for (int64_t down = 0; down < b_.height && s * b_.height + down < b_.outputs; down += kWide) {
        const int64_t n = s * b_.height + down, from = b_.starts[s];
        const int64_t outputs = std::min<int64_t>({kWide, b_.height - down, b_.outputs - n});
        const Strip strip{x, row_, apart, inputs_ + from, b_.starts[s + 1] - from, b_.depth, b_.height,
                          w + (from - first) * size + down * 2};
        float* sums = done_.at == room_ ? room_ + kRun * kRuns * kWide : room_;
        sum_strip(strip, top, low, b_.height - down > W, sums, [&] { finish(); });
        done_ = {sums, top, low, n, outputs, place + n, low_place + n};
      }
  }

  // Writes what is left.
  OW_INLINE void finish() const { write(done_, e_, stride_, y_); }

 private:
  const BlockWeights& b_;
  const HalfEpilogue& e_;
  const int32_t* inputs_;
  int64_t row_, stride_;
  uint16_t* y_;
  float* room_;
  Sums done_;
};

}  // namespace openwork::OW_ISA
