// The register tile of columns (height 1, 2, 4 or 8): registers hold tokens, weights are broadcast.
#pragma once

#include <algorithm>

#include "act.hpp"
#include "kernels.hpp"
#include "past.hpp"
#include "simd.hpp"
#include "transpose.hpp"
#include "widen.hpp"

namespace openwork::OW_ISA {

void column_linear(const ColumnWeights&, const Epilogue&, const Tokens&, int threads);

// Vectors of tokens beside each other for columns of R weights.
constexpr int most_vectors(int64_t r) {
  constexpr bool many = OW_WIDTH == 16;  // registers
  return r == 1 ? (many ? 4 : 8) : r == 2 ? (many ? 6 : 4) : r == 4 ? (many ? 4 : 3) : many ? 3 : 1;
}

// How `images` of so many vectors are cut: into tiles, and where threads cannot share those out evenly, into shares of the
// outputs, each of which lays a tile out anew. A few more tiles do where enough sums stay in each to hide a product's latency.
struct Cuts {
  int64_t tiles, shares;

  Cuts(int64_t vectors, int most, int64_t height, int64_t images, int threads, int64_t parts) {
    tiles = (vectors + most - 1) / most;
    shares = 1;
    if (images * tiles >= 4 * threads) return;
    int64_t even = tiles;
    while (images * even % threads != 0) ++even;
    if (vectors / even * height >= 12) tiles = even;
    const int64_t jobs = images * tiles;
    if (jobs % threads != 0) shares = std::min(parts, (4 * threads + jobs - 1) / jobs);
  }
};

constexpr int64_t kAhead = 512;  // weights that are fetched ahead, across the ends of pages

// Adds `count` columns to R rows of V vectors of sums; fresh sums begin at zero. Activations are a packed tile
// [input][vector].
template <int R, int V>
OW_INLINE void add_columns(const float* x, const uint16_t* inputs, const float* w, int64_t count, float* sums,
                           bool fresh) {
  constexpr int64_t step = V * W;
  constexpr int U = R * V >= 8 ? 1 : R * V >= 4 ? 2 : 4;  // independent sums, to hide the latency of the unit
  constexpr int P = std::max(4, 16 / R);                  // columns of a cache line, or of two
  vf acc[U][R][V];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[u][r][v] = u > 0 || fresh ? vf{} : load(sums + r * step + v * W);
  // `weight(r)` is a vector of it
  const auto add = [&](int64_t input, const auto& weight, vf(&to)[R][V]) __attribute__((always_inline)) {
    const float* from = x + input * step;
    if constexpr (R == 1) {
      const vf ws = weight(0);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) to[0][v] = fma(load(from + v * W), ws, to[0][v]);
    } else {
      vf xv[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        xv[v] = load(from + v * W);
        OW_HOLD(xv[v]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const vf ws = weight(r);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) to[r][v] = fma(xv[v], ws, to[r][v]);
      }
    }
  };
  // Reading is what limits single weights: four of them are read at once, and so are four places.
  const auto add_four = [&](int64_t i) __attribute__((always_inline)) {
    const FourPlaces places(inputs + i);
    if constexpr (R == 1 && kFastLanes) {
      const FourFloats weights(w + i);
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p)
        add(places[p], [&](int) __attribute__((always_inline)) { return weights[p]; }, acc[p % U]);
    } else {
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p)
        add(places[p], [&](int r) __attribute__((always_inline)) { return splat(w[(i + p) * R + r]); }, acc[p % U]);
    }
  };
  int64_t i = 0;
  __builtin_prefetch(w + kAhead);
  for (; i + P <= count; i += P) {
#pragma GCC unroll 2
    for (int line = 0; line < P * R / 16; ++line) __builtin_prefetch(w + i * R + line * 16 + kAhead);
#pragma GCC unroll 4
    for (int p = 0; p < P; p += 4) add_four(i + p);
  }
  for (; i + 4 <= count; i += 4) add_four(i);
  for (; i < count; ++i)
    add(inputs[i], [&](int r) __attribute__((always_inline)) { return splat(w[i * R + r]); }, acc[0]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      vf sum = acc[0][r][v];
#pragma GCC unroll 4
      for (int u = 1; u < U; ++u) sum += acc[u][r][v];
      store(sums + r * step + v * W, sum);
    }
}

// The groups of one part of the outputs in chunk `k` of the inputs, a packed tile; `w` are the part's weights and `sums`
// its [group][height][step].
template <int R, int V>
void micro(const ColumnWeights& c, int64_t k, int64_t part, const float* x, const float* w, float* sums) {
  const int64_t g0 = part * c.part, g1 = std::min(c.groups, g0 + c.part);
  const int64_t* starts = c.starts + k * c.groups;
  const int32_t* order = c.order + k * c.groups;
  const uint16_t* inputs = c.inputs + starts[g0];
  for (int64_t g = g0; g < g1; ++g) {
    const int64_t count = starts[g + 1] - starts[g];
    if (count == 0 && k > 0) continue;
    add_columns<R, V>(x, inputs, w, count, sums + (order[g] - g0) * R * V * W, k == 0);
    inputs += count;
    w += count * R;
  }
}

using Micro = void (*)(const ColumnWeights&, int64_t, int64_t, const float*, const float*, float*);

template <int R, int V = most_vectors(R)>
Micro micro_of(int vectors) {
  if constexpr (V > 1) {
    if (vectors < V) return micro_of<R, V - 1>(vectors);
  }
  return micro<R, V>;
}

inline Micro pick(int64_t height, int vectors) {
  return height == 8   ? micro_of<8>(vectors)
         : height == 4 ? micro_of<4>(vectors)
         : height == 2 ? micro_of<2>(vectors)
                       : micro_of<1>(vectors);
}

// The weights of columns [first, last) as floats, times nothing: scales of int8 wait for the sums.
inline const float* widened(const ColumnWeights& c, int64_t first, int64_t last, float* room) {
  const int64_t begin = first * c.height, end = last * c.height;
  if (c.store == kFloat) return static_cast<const float*>(c.values) + begin;
  if (c.store == kBfloat) {
    const uint16_t* from = static_cast<const uint16_t*>(c.values);
    for (int64_t i = begin; i < end; ++i) room[i - begin] = one(from[i]);
  } else {
    const int8_t* from = static_cast<const int8_t*>(c.values);
    for (int64_t i = begin; i < end; ++i) room[i - begin] = one(from[i]);
  }
  return room;
}

// Adds chunk `k` of the inputs, a packed tile, to the sums [group][height][step] of one part of the outputs.
inline void add_chunk(const ColumnWeights& c, int64_t k, int64_t part, Micro run, const float* x, float* sums,
                      float* (*room)(int, size_t)) {
  const int64_t* starts = c.starts + k * c.groups;
  const int64_t begin = starts[part * c.part], end = starts[std::min(c.groups, (part + 1) * c.part)];
  run(c, k, part, x, widened(c, begin, end, c.store == kFloat ? nullptr : room(3, (end - begin) * c.height)), sums);
}

// Scales the finished sums of a part whose weights are int8.
inline void scale_part(const ColumnWeights& c, int64_t part, int64_t step, float* sums) {
  if (c.store != kInt8) return;
  const int64_t n0 = part * c.part * c.height, n1 = std::min(c.groups, (part + 1) * c.part) * c.height;
  for (int64_t n = n0; n < n1; ++n, sums += step) {
    const vf factor = splat(c.scales[n]);
    for (int64_t i = 0; i < step; i += W) store(sums + i, load(sums + i) * factor);
  }
}

// Sums [output][step] become rows of y, one for each of up to W tokens, with bias, residual and activation on the way.
inline void write_rows(const float* sums, int64_t step, int tokens, int64_t outputs, const Epilogue& e, int64_t first,
                       float* y, int64_t y_stride, const float* residual, bool past = false) {
  vf r[W];
  for (int64_t n = 0; n < outputs; n += W) {
    const int64_t wide = std::min<int64_t>(W, outputs - n);
    const vf bias = e.bias == nullptr ? vf{} : load_some(e.bias + first + n, wide);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) r[i] = i < wide ? load(sums + (n + i) * step) : vf{};
    transpose(r);
    float* out = y + n;
    const float* more = residual == nullptr ? nullptr : residual + n;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if (i >= tokens) break;
      vf sum = r[i] + bias;
      if (wide == W) {
        if (more != nullptr) sum += load(more + i * y_stride);
        put_line(out + i * y_stride, e.act == kNone ? sum : activate(sum, e.act), past);
      } else {
        if (more != nullptr) sum += load_some(more + i * y_stride, wide);
        store_some(out + i * y_stride, e.act == kNone ? sum : activate(sum, e.act), wide);
      }
    }
  }
}

}  // namespace openwork::OW_ISA
