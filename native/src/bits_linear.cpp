// At most a few tokens through single weights: a bit for every weight says whether it is stored. Sixteen or eight inputs
// take as many bits and one load of weights, which are spread to their places; that beats a number for each weight from
// about a fifth of the weights on, in time and in bytes.
#include <limits>
#include <type_traits>

#include "act.hpp"
#include "kernels.hpp"
#include "pool.hpp"
#include "simd.hpp"
#include "widen.hpp"

namespace openwork::OW_ISA {
namespace {

#if defined(__AVX512F__)

using Group = vf;  // of inputs, one for each bit of Kept
using Kept = uint16_t;

OW_INLINE float total(Group v) { return _mm512_reduce_add_ps(v); }

// Adds a group of a row times the same inputs of MT tokens, which are all there if `whole`. The NaN of an input without a
// weight stays out of the sums.
template <int MT, bool whole, typename T>
OW_INLINE void add_group(unsigned kept, const T* w, const float* x, int64_t step, Group (&acc)[MT]) {
  const Lanes lanes = lanes_of(kept);
  vf weights = widen(w);
  OW_HOLD(weights);  // spreading from memory is slow
  vf spread{};
  OW_HOLD(spread);  // AMD's processors wait for what the register held before, unless it was set to zero
  spread = _mm512_mask_expand_ps(spread, lanes, weights);
#pragma GCC unroll 4
  for (int m = 0; m < MT; ++m)
    if constexpr (whole)
      acc[m] = _mm512_mask3_fmadd_ps(spread, load(x + m * step), acc[m], lanes);
    else  // others are not even read
      acc[m] = fma(spread, load_lanes(x + m * step, lanes), acc[m]);
}

#elif defined(__AVX2__)

using Group = __m256;
using Kept = uint8_t;

// For every byte of bits: of each of its eight places, the rank of its weight with the sign bit set, or zero.
struct Places {
  alignas(64) int32_t of[256][8];

  constexpr Places() : of() {
    for (int byte = 0; byte < 256; ++byte)
      for (int place = 0, rank = 0; place < 8; ++place)
        of[byte][place] = (byte >> place & 1) != 0 ? std::numeric_limits<int32_t>::min() | rank++ : 0;
  }
};
constexpr Places kPlaces;

OW_INLINE float total(Group v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// The same; the weight that stands in the place of none is finite, as formats demand, and meets no input.
template <int MT, bool, typename T>
OW_INLINE void add_group(unsigned kept, const T* w, const float* x, int64_t step, Group (&acc)[MT]) {
  const __m256i at = _mm256_load_si256(reinterpret_cast<const __m256i*>(kPlaces.of[kept]));
  const __m256 spread = _mm256_permutevar8x32_ps(eight(w), at);
#pragma GCC unroll 4
  for (int m = 0; m < MT; ++m) acc[m] = _mm256_fmadd_ps(spread, _mm256_maskload_ps(x + m * step, at), acc[m]);
}

#endif

#if defined(__AVX2__)

// S rows times MT tokens.
template <int S, int MT, typename T>
OW_INLINE void sum_rows(const BitWeights& b, const int64_t* rows, const float* x, int64_t step, float* const* sums) {
  const int64_t bytes = (b.inputs + 7) / 8;
  constexpr int64_t together = sizeof(Kept), ahead = 2048;  // bytes
  Group acc[S][MT] = {};
  const T* w[S];
  const uint8_t* bits[S];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
    w[s] = static_cast<const T*>(b.values) + b.starts[rows[s]];
    bits[s] = b.bits + rows[s] * bytes;
  }
  const auto add = [&](auto whole, int64_t k, int s, unsigned kept) __attribute__((always_inline)) {
    asm("" : "+r"(kept));  // whole registers, or g++ counts in half of one, which waits for the other half
    add_group<MT, decltype(whole)::value, T>(kept, w[s], x + k * 8, step, acc[s]);
    __builtin_prefetch(reinterpret_cast<const char*>(w[s]) + ahead);
    w[s] += __builtin_popcount(kept);
  };
  int64_t k = 0;
  const auto add_all = [&](auto whole, int64_t end) __attribute__((always_inline)) {
    for (; k + together <= end; k += together)
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        Kept kept;
        std::memcpy(&kept, bits[s] + k, together);
        add(whole, k, s, kept);
      }
  };
  add_all(std::true_type{}, b.inputs / 8);
  add_all(std::false_type{}, bytes);
  for (; k < bytes; ++k)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) add(std::false_type{}, k, s, bits[s][k]);
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s)
#pragma GCC unroll 4
    for (int m = 0; m < MT; ++m) sums[s][m] = total(acc[s][m]);
}

#else

template <int S, int MT, typename T>
OW_INLINE void sum_rows(const BitWeights& b, const int64_t* rows, const float* x, int64_t step, float* const* sums) {
  const int64_t bytes = (b.inputs + 7) / 8;
  for (int s = 0; s < S; ++s) {
    const T* w = static_cast<const T*>(b.values) + b.starts[rows[s]];
    const uint8_t* bits = b.bits + rows[s] * bytes;
    float acc[MT] = {};
    for (int64_t k = 0; k < bytes; ++k)
      for (unsigned left = bits[k]; left != 0; left &= left - 1) {
        const float weight = one(*w++);
        for (int m = 0; m < MT; ++m) acc[m] += weight * x[m * step + k * 8 + __builtin_ctz(left)];
      }
    for (int m = 0; m < MT; ++m) sums[s][m] = acc[m];
  }
}

#endif

// Rows [first, last) times MT tokens; sums are [row][token].
template <int MT, typename T>
void run(const BitWeights& b, int64_t first, int64_t last, const float* x, int64_t step, float* sums) {
  const int64_t quarter = (last - first) / kStreams;
  const auto add = [&](auto streams, int64_t row, int64_t apart) {
    constexpr int S = decltype(streams)::value;
    int64_t rows[S];
    float* to[S];
    for (int s = 0; s < S; ++s) {
      rows[s] = row + s * apart;
      to[s] = sums + (rows[s] - first) * MT;
    }
    sum_rows<S, MT, T>(b, rows, x, step, to);
  };
  for (int64_t i = 0; i < quarter; ++i)
    if constexpr (MT == 1) {
      add(std::integral_constant<int, 4>{}, first + i, quarter);
    } else {
      add(std::integral_constant<int, 2>{}, first + i, quarter);
      add(std::integral_constant<int, 2>{}, first + 2 * quarter + i, quarter);
    }
  for (int64_t row = first + kStreams * quarter; row < last; ++row) add(std::integral_constant<int, 1>{}, row, 0);
}

using Run = void (*)(const BitWeights&, int64_t, int64_t, const float*, int64_t, float*);

template <typename T>
Run run_of(int64_t tokens) {
  return tokens == 1 ? run<1, T> : tokens == 2 ? run<2, T> : tokens == 3 ? run<3, T> : run<4, T>;
}

}  // namespace

void bits_linear(const BitWeights& b, const Epilogue& e, const Tokens& a, int threads) {
  const int64_t parts = std::min<int64_t>(std::max<int64_t>(b.outputs, 1), threads > 1 ? 4 * threads : 1);
  parallel(parts, threads, [&](int64_t part) {
    const int64_t first = b.outputs * part / parts, last = b.outputs * (part + 1) / parts;
    for (int64_t t0 = 0; t0 < a.tokens; t0 += 4) {
      const int64_t tokens = std::min<int64_t>(4, a.tokens - t0);
      const Run go = b.store == kFloat  ? run_of<float>(tokens)
                     : b.store == kInt8 ? run_of<int8_t>(tokens)
                                        : run_of<uint16_t>(tokens);
      float* sums = scratch(0, (last - first) * tokens);
      go(b, first, last, a.x + t0 * a.x_stride, a.x_stride, sums);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t n = first; n < last; n += W) {
          const int64_t wide = std::min<int64_t>(W, last - n);
          float row[W] = {};
          for (int64_t i = 0; i < wide; ++i) row[i] = sums[(n - first + i) * tokens + t];
          finish(load(row), b.store == kInt8 ? b.scales : nullptr, e, n, wide, a.y_stride, t0 + t, a.y);
        }
    }
  });
}

}  // namespace openwork::OW_ISA
