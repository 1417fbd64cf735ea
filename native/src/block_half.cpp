// Tokens in bfloat16 through blocks of bfloat16 weights, in the processor's own arithmetic for them: matrix tiles (AMX)
// or dot products of pairs. Sums are float32.
#include "act.hpp"
#include "block.hpp"
#include "pool.hpp"

namespace openwork::OW_ISA {

void block_half(const BlockWeights&, const HalfEpilogue&, const HalfTokens&, int threads);

namespace {

constexpr int kWide = 2 * W;  // outputs of a tile, and floats from one of its tokens to the next

// Tokens of a tile through the blocks of a strip; two outputs' weights of one pair of inputs lie two pairs apart.
struct Strip {
  const uint16_t* x;
  int64_t row;  // from token to token
  const int32_t* inputs;
  int64_t blocks, depth, height;
  const uint16_t* w;
};

#if defined(__AMX_BF16__)

constexpr int64_t kTokens = 32;
constexpr int64_t kWeights = 512 << 10;  // bytes of weights that pass over a super-tile together: a quarter of the second cache

// Inputs that one tile instruction takes.
int64_t step_of(int64_t depth) {
  int64_t step = 32;
  while (depth % step != 0) step /= 2;
  return step;
}

// Tiles 0 to 3 hold sums (tokens' half, outputs' half), 4 and 5 tokens, 6 and 7 weights.
class Tiles {
 public:
  Tiles(int64_t tokens, int64_t depth) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, unused[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } c;
    const int64_t step = step_of(depth), top = std::min<int64_t>(16, tokens), low = tokens - top;
    const auto set = [&](int tile, int64_t rows, int64_t bytes) {
      c.rows[tile] = static_cast<uint8_t>(rows);
      c.bytes[tile] = static_cast<uint16_t>(rows == 0 ? 0 : bytes);
    };
    for (int tile = 0; tile < 4; ++tile) set(tile, tile < 2 ? top : low, 64);
    set(4, top, step * 2);
    set(5, low, step * 2);
    set(6, step / 2, 64);
    set(7, step / 2, 64);
    _tile_loadconfig(&c);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// The vectors' units are free while tiles are multiplied: they do something else `meanwhile`.
template <bool Two, bool Both, typename Else>
OW_INLINE void sum_strip(const Strip& s, float* sums, const Else& meanwhile) {
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
      if constexpr (Two) _tile_loadd(5, x + 16 * s.row, token);
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
OW_INLINE void sum_strip(const Strip& s, int64_t tokens, bool both, float* sums, const Else& meanwhile) {
  if (tokens > 16)
    both ? sum_strip<true, true>(s, sums, meanwhile) : sum_strip<true, false>(s, sums, meanwhile);
  else
    both ? sum_strip<false, true>(s, sums, meanwhile) : sum_strip<false, false>(s, sums, meanwhile);
}

#else

constexpr int64_t kTokens = 14;
constexpr int64_t kWeights = 128 << 10;

struct Tiles {
  Tiles(int64_t, int64_t) {}
};

template <int MT, int NV>
void sum_tile(const Strip& s, float* sums) {
  vf acc[MT][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MT; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[m][v] = vf{};
  const uint16_t* w = s.w;
  for (int64_t b = 0; b < s.blocks; ++b) {
    const uint16_t* x = s.x + s.inputs[b];
    for (int64_t k = 0; k < s.depth; k += 2, x += 2, w += 2 * s.height) {
      __m512bh wv[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) wv[v] = reinterpret_cast<__m512bh>(_mm512_loadu_ps(w + v * 2 * W));
#pragma GCC unroll 16
      for (int m = 0; m < MT; ++m) {
        int32_t two;
        std::memcpy(&two, x + m * s.row, sizeof two);
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

template <int NV, int MT = kTokens>
void sum_of(const Strip& s, int64_t tokens, float* sums) {
  if constexpr (MT > 1) {
    if (tokens < MT) return sum_of<NV, MT - 1>(s, tokens, sums);
  }
  sum_tile<MT, NV>(s, sums);
}

template <typename Else>
void sum_strip(const Strip& s, int64_t tokens, bool both, float* sums, const Else& meanwhile) {
  meanwhile();
  both ? sum_of<2>(s, tokens, sums) : sum_of<1>(s, tokens, sums);
}

#endif

OW_INLINE vf finished(vf sum, __m256i residual, int act) {
  sum += reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(residual), 16));
  return act == kNone ? sum : activate(sum, act);
}

// Sums of `tokens` tokens that are to become outputs [first, first + count) of rows of y.
struct Sums {
  const float* at;
  int64_t tokens, first, count;
  uint16_t* y;
  const uint16_t* residual;
};

void write(const Sums& s, const HalfEpilogue& e, int64_t stride) {
  const auto [sums, tokens, first, count, y, residual] = s;
  const float* bias = e.bias == nullptr ? nullptr : e.bias + first;
  if (count == kWide) {  // a whole line of the cache
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
  for (int64_t i = 0; i < count; i += W) {
    const int64_t n = std::min<int64_t>(W, count - i);
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

}  // namespace

void block_half(const BlockWeights& b, const HalfEpilogue& e, const HalfTokens& a, int threads) {
  const int64_t padded = (a.inputs + b.depth - 1) / b.depth * b.depth, size = b.depth * b.height;
  const int64_t tiles = (a.tokens + kTokens - 1) / kTokens;
  // Super-tiles of tokens fit half the second cache; groups of strips pass over it one after another.
  const int64_t fit = std::max<int64_t>(1, (512 << 10) / (padded * 2 * kTokens));
  int64_t supers = (tiles + fit - 1) / fit;
  if (supers < threads) supers = std::min<int64_t>(tiles, threads);
  int64_t parts = threads > 1 && supers < 4 * threads ? (4 * threads + supers - 1) / supers : 1;
  parts = std::min(parts, b.strips);
  const auto* values = static_cast<const uint16_t*>(b.values);
  parallel(supers * parts, threads, [&](int64_t task) {
    const int64_t super = task / parts, part = task % parts;
    const int64_t t0 = super * tiles / supers * kTokens;
    const int64_t t1 = std::min(a.tokens, (super + 1) * tiles / supers * kTokens), count = t1 - t0;
    const int64_t s0 = first_strip(b, part, parts), s1 = first_strip(b, part + 1, parts);
    if (s0 >= s1 || count <= 0) return;
    const uint16_t* x = a.x + t0 * a.x_stride;
    int64_t row = a.x_stride;
    if (padded != a.inputs) {
      auto* wide = reinterpret_cast<uint16_t*>(scratch(0, (count * padded + 1) / 2));
      for (int64_t t = 0; t < count; ++t) {
        std::copy(x + t * row, x + t * row + a.inputs, wide + t * padded);
        std::fill(wide + t * padded + a.inputs, wide + (t + 1) * padded, uint16_t{0});
      }
      x = wide;
      row = padded;
    }
    // All tiles have as many tokens; the last one may begin inside the one before it.
    const int64_t tokens = std::min(kTokens, count);
    const Tiles tiles_of_processor(tokens, b.depth);
    float* room = scratch(1, 2 * kTokens * kWide);
    Sums done{room, 0, 0, 0, nullptr, nullptr};
    for (int64_t g0 = s0, g1; g0 < s1; g0 = g1) {
      g1 = g0 + 1;
      while (g1 < s1 && (b.starts[g1 + 1] - b.starts[g0]) * size * 2 <= kWeights) ++g1;
      for (int64_t t = 0; t < count; t += tokens) {
        const int64_t at = std::min(t, count - tokens);
        for (int64_t s = g0; s < g1; ++s)
          for (int64_t down = 0; down < b.height && s * b.height + down < b.outputs; down += kWide) {
            const int64_t n = s * b.height + down, from = b.starts[s];
            const int64_t outputs = std::min<int64_t>({kWide, b.height - down, b.outputs - n});
            const int64_t place = (t0 + at) * a.y_stride + n;
            const Strip strip{x + at * row, row, b.inputs + from, b.starts[s + 1] - from, b.depth, b.height,
                              values + from * size + down * 2};
            float* sums = done.at == room ? room + kTokens * kWide : room;
            sum_strip(strip, tokens, b.height - down > W, sums, [&] { write(done, e, a.y_stride); });
            done = {sums, tokens, n, outputs, a.y + place, e.residual == nullptr ? nullptr : e.residual + place};
          }
      }
    }
    write(done, e, a.y_stride);
  });
}

}  // namespace openwork::OW_ISA
