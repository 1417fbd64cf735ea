// The register tile of blocks: registers hold outputs, activations are broadcast.
#include "block.hpp"
#include "block_write.hpp"

namespace openwork::OW_ISA {
namespace {

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
      p[0] = reinterpret_cast<const char*>(t.x + t.offsets[block]);
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
  const float* w = t.w;
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

template <int NV, int MT = most_tokens(NV)>
void micro_of(int tokens, const Tile& t) {
  if constexpr (MT > 1) {
    if (tokens < MT) return micro_of<NV, MT - 1>(tokens, t);
  }
  t.row == 0 ? micro<MT, NV, false>(t) : micro<MT, NV, true>(t);
}

template <int NV>
void run_nv(int tokens, const Tile& t) {
  micro_of<NV>(tokens, t);
  if (t.act != kNone && t.act != kRelu) activate_tile(t, tokens, NV * W);
}

}  // namespace

void run_tile(int nv, int tokens, const Tile& t) {
  if constexpr (kRegisters == 32) {
    if (nv == 4) return run_nv<4>(tokens, t);
  }
  nv == 2 ? run_nv<2>(tokens, t) : run_nv<1>(tokens, t);
}

}  // namespace openwork::OW_ISA
