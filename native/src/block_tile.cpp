// The register tile of blocks: registers hold outputs, activations are broadcast.
#include "block.hpp"
#include "block_write.hpp"

namespace openwork::OW_ISA {
namespace {

// Activation `k` of every token of a tile.
template <int MT, Lie L>
struct Activations {
  const char* p;

  OW_INLINE Activations(const Tile& t, int64_t block) {
    const int64_t i = t.offsets[block];
    p = reinterpret_cast<const char*>(L == Lie::kPanels ? t.x + i / kPanel * t.row + i % kPanel : t.x + i);
  }
  OW_INLINE float at(int m) const {
    return *reinterpret_cast<const float*>(p + m * 4 * (L == Lie::kPanels ? kPanelRow : 1));
  }
  OW_INLINE void advance(int64_t step) { p += 4 * (L == Lie::kPanels ? 1 : step); }
};

// Rows are reached from every third one, which the processor's addresses can.
template <int MT>
struct Activations<MT, Lie::kRows> {
  static constexpr int kReach = 3;
  const char* p[(MT + kReach - 1) / kReach];
  int64_t row;

  OW_INLINE Activations(const Tile& t, int64_t block) : row(t.row * 4) {
    const char* x = reinterpret_cast<const char*>(t.x + t.offsets[block]);
#pragma GCC unroll 8
    for (int i = 0; i < (MT + kReach - 1) / kReach; ++i) p[i] = x + i * kReach * row;
  }
  OW_INLINE float at(int m) const {
    return *reinterpret_cast<const float*>(p[m / kReach] + (m % kReach) * row);
  }
  OW_INLINE void advance(int64_t) {
#pragma GCC unroll 8
    for (auto& x : p) x += 4;
  }
};

template <int MT, int NV, Lie L>
OW_INLINE void sum_strip(const Tile& t, int64_t blocks, const char*& next, vf (&acc)[MT][NV]) {
  const float* w = t.w;
  const int64_t step = t.step, height = t.height, stride = t.fetch.stride;
  for (int64_t b = 0; b < blocks; ++b) {
    Activations<MT, L> x(t, b);
    const float* end = w + t.depth * height;
#pragma GCC unroll 4
    for (; w != end; w += height, next += stride, x.advance(step)) {
      __builtin_prefetch(next, 0, 2);
      if constexpr (NV > 1) __builtin_prefetch(next + stride / 2, 0, 2);
      vf wv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        wv[v] = load(w + v * W);
        OW_HOLD(wv[v]);
      }
#pragma GCC unroll 24
      for (int m = 0; m < MT; ++m) {
        const vf xs = splat(x.at(m));
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[m][v] = fma(xs, wv[v], acc[m][v]);
      }
    }
  }
}

template <int MT, int NV, Lie L>
void micro(const Tile& first, const int64_t* starts, int64_t strips) {
  Tile t = first;
  const char* next = t.fetch.next;
  for (int64_t s = 0; s < strips && t.outputs > 0; ++s) {
    const int64_t blocks = starts[s + 1] - starts[s];
    vf acc[MT][NV];
#pragma GCC unroll 24
    for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = vf{};
    if (!t.past)
      for (int m = 0; m < MT; ++m) __builtin_prefetch(t.y + m * t.y_stride, 1);
    if (t.residual != nullptr)
      for (int m = 0; m < MT; ++m) __builtin_prefetch(t.residual + m * t.y_stride);
    sum_strip<MT, NV, L>(t, blocks, next, acc);
    write_tile<MT, NV>(t, acc);
    if (t.act != kNone && t.act != kRelu)
      activate_tile(t.y, t.y_stride, MT, std::min<int64_t>(t.outputs, NV * W), t.act);
    t.offsets += blocks;
    t.w += blocks * t.depth * t.height;
    t.y += t.height;
    t.outputs -= t.height;
    if (t.bias != nullptr) t.bias += t.height;
    if (t.residual != nullptr) t.residual += t.height;
  }
}

template <int NV, int MT = most_tokens(NV)>
RunTile run_of(int tokens, Lie lie) {
  if constexpr (MT > 1) {
    if (tokens < MT) return run_of<NV, MT - 1>(tokens, lie);
  }
  if constexpr (NV == 1) {
    if (lie == Lie::kPanels) return micro<MT, NV, Lie::kPanels>;
  }
  return lie == Lie::kRows ? micro<MT, NV, Lie::kRows> : micro<MT, NV, Lie::kPacked>;
}

}  // namespace

RunTile tile_of(int nv, int tokens, Lie lie) {
  if constexpr (kRegisters == 32) {
    if (nv == 4) return run_of<4>(tokens, lie);
  }
  return nv == 2 ? run_of<2>(tokens, lie) : run_of<1>(tokens, lie);
}

}  // namespace openwork::OW_ISA
