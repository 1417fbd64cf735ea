// The register tile of blocks: registers hold outputs, activations are broadcast.
#include "act.hpp"
#include "block.hpp"

namespace openwork::OW_ISA {
namespace {

template <int MT, int NV>
OW_INLINE void write_tile(const Tile& t, const vf (&acc)[MT][NV]) {
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const int64_t n = t.outputs - v * W;
    if (n <= 0) return;
    float* y = t.y + v * W;
    const float* residual = t.residual == nullptr ? nullptr : t.residual + v * W;
    const vf bias = t.bias == nullptr ? vf{} : n >= W ? load(t.bias + v * W) : load_some(t.bias + v * W, n);
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) {
      vf sum = acc[m][v] + bias;
      if (n >= W) {
        if (residual != nullptr) sum += load(residual + m * t.y_stride);
        if (t.act == kRelu) sum = activate(sum, kRelu);
        store(y + m * t.y_stride, sum);
      } else {
        if (residual != nullptr) sum += load_some(residual + m * t.y_stride, n);
        if (t.act == kRelu) sum = activate(sum, kRelu);
        store_some(y + m * t.y_stride, sum, n);
      }
    }
  }
}

// Activation `k` of every token of a tile. Rows are reached from every third one, which the processor's addresses can.
template <int MT, bool Rows>
struct Activations {
  static constexpr int kReach = 3;
  const char* p[Rows ? (MT + kReach - 1) / kReach : 1];
  int64_t row;

  OW_INLINE Activations(const Tile& t, int64_t block) : row(t.row * 4) {
    if constexpr (Rows) {
      const char* x = reinterpret_cast<const char*>(t.x + t.offsets[block]);
#pragma GCC unroll 5
      for (int i = 0; i < (MT + kReach - 1) / kReach; ++i) p[i] = x + i * kReach * row;
    } else {
      p[0] = reinterpret_cast<const char*>(t.x + t.offsets[block] * t.scale);
    }
  }
  OW_INLINE float at(int m) const {
    const char* x = Rows ? p[m / kReach] + (m % kReach) * row : p[0] + m * 4;
    return *reinterpret_cast<const float*>(x);
  }
  OW_INLINE void advance(int64_t step) {
    if constexpr (Rows) {
#pragma GCC unroll 5
      for (auto& x : p) x += 4;
    } else {
      p[0] += step * 4;
    }
  }
};

template <int MT, int NV, bool Rows>
void micro(const Tile& t) {
  vf acc[MT][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = vf{};
  for (int m = 0; m < MT; ++m) __builtin_prefetch(t.y + m * t.y_stride, 1);
  if (t.residual != nullptr)
    for (int m = 0; m < MT; ++m) __builtin_prefetch(t.residual + m * t.y_stride);
  const float* w = static_cast<const float*>(t.w);
  const int64_t step = t.step, height = t.height;
  for (int64_t b = 0; b < t.blocks; ++b) {
    Activations<MT, Rows> x(t, b);
    const float* end = w + t.depth * height;
#pragma GCC unroll 4
    for (; w != end; w += height, x.advance(step)) {
      vf wv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        wv[v] = load(w + v * W);
        OW_HOLD(wv[v]);
      }
#pragma GCC unroll 16
      for (int m = 0; m < MT; ++m) {
        const vf xs = splat(x.at(m));
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[m][v] = fma(xs, wv[v], acc[m][v]);
      }
    }
  }
  write_tile<MT, NV>(t, acc);
}

// One or a few tokens: bound by memory, so weights are read as they are stored, far ahead, into several sums.
template <int MT, int NV, typename T, bool Rows>
void micro_few(const Tile& t) {
  constexpr int U = MT * NV >= 8 ? 1 : MT * NV >= 4 ? 2 : 4;
  constexpr bool scaled = sizeof(T) == 1;
  vf acc[MT][NV] = {};
  const T* w = static_cast<const T*>(t.w);
  const int64_t step = t.step, height = t.height;
  vf sum[U][MT][NV] = {};
  for (int64_t b = 0; b < t.blocks; ++b) {
    Activations<MT, Rows> x(t, b);
    int64_t k = 0;
    for (; k + U <= t.depth; k += U)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u, w += height, x.advance(step)) {
        __builtin_prefetch(reinterpret_cast<const char*>(w) + 2048);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const vf wv = widen(w + v * W);
#pragma GCC unroll 4
          for (int m = 0; m < MT; ++m) sum[u][m][v] = fma(splat(x.at(m)), wv, sum[u][m][v]);
        }
      }
    for (; k < t.depth; ++k, w += height, x.advance(step))
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const vf wv = widen(w + v * W);
#pragma GCC unroll 4
        for (int m = 0; m < MT; ++m) sum[0][m][v] = fma(splat(x.at(m)), wv, sum[0][m][v]);
      }
    if (scaled || b + 1 == t.blocks) {
      const vf factor = splat(scaled ? t.scales[b] : 1.0f);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
        for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            acc[m][v] = fma(factor, sum[u][m][v], acc[m][v]);
            sum[u][m][v] = vf{};
          }
    }
  }
  write_tile<MT, NV>(t, acc);
}

template <int NV, int MT = most_tokens(NV)>
void micro_of(int tokens, const Tile& t) {
  if constexpr (MT > 1) {
    if (tokens < MT) return micro_of<NV, MT - 1>(tokens, t);
  }
  t.row == 0 ? micro<MT, NV, false>(t) : micro<MT, NV, true>(t);
}

template <int NV, typename T, int MT = std::min(4, most_tokens(NV))>
void few_of(int tokens, const Tile& t) {
  if constexpr (MT > 1) {
    if (tokens < MT) return few_of<NV, T, MT - 1>(tokens, t);
  }
  t.row == 0 ? micro_few<MT, NV, T, false>(t) : micro_few<MT, NV, T, true>(t);
}

// The dearer activations run over the outputs once more, while they are in the cache.
void activate_tile(const Tile& t, int tokens, int wide) {
  const int64_t n = std::min<int64_t>(t.outputs, wide);
  for (int m = 0; m < tokens; ++m) {
    float* y = t.y + m * t.y_stride;
    int64_t i = 0;
    for (; i + W <= n; i += W) store(y + i, activate(load(y + i), t.act));
    if (i < n) store_some(y + i, activate(load_some(y + i, n - i), t.act), n - i);
  }
}

template <int NV>
void run_nv(int tokens, const Tile& t, int kind, bool few) {
  if (!few)
    micro_of<NV>(tokens, t);
  else if (kind == kBfloat)
    few_of<NV, uint16_t>(tokens, t);
  else if (kind == kInt8)
    few_of<NV, int8_t>(tokens, t);
  else
    few_of<NV, float>(tokens, t);
  if (t.act != kNone && t.act != kRelu) activate_tile(t, tokens, NV * W);
}

}  // namespace

void run_tile(int nv, int tokens, const Tile& t, int kind, bool few) {
  if (nv == 4)
    run_nv<4>(tokens, t, kind, few);
  else if (nv == 2)
    run_nv<2>(tokens, t, kind, few);
  else
    run_nv<1>(tokens, t, kind, few);
}

}  // namespace openwork::OW_ISA
