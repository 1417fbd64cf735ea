// Tokens through columns of weights.
#include "column.hpp"
#include "pool.hpp"

namespace openwork::OW_ISA {
namespace {

// One or a few tokens: every column adds to the outputs of its group at once.
template <int R, typename T>
void add_few(const ColumnWeights& c, int64_t slot, const float* x, float* sums) {
  const T* w = static_cast<const T*>(c.values) + c.starts[slot] * R;
  const uint16_t* inputs = c.inputs + c.starts[slot];
  const int64_t count = c.starts[slot + 1] - c.starts[slot];
  constexpr int U = 4;
  float acc[U][R] = {};
  int64_t i = 0;
  for (; i + U <= count; i += U)
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const float xs = x[inputs[i + u]];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[u][r] += xs * one(w[(i + u) * R + r]);
    }
  for (; i < count; ++i)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[0][r] += x[inputs[i]] * one(w[i * R + r]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sums[r] += (acc[0][r] + acc[1][r]) + (acc[2][r] + acc[3][r]);
}

using Few = void (*)(const ColumnWeights&, int64_t, const float*, float*);

template <typename T>
Few few_of(int64_t height) {
  return height == 8 ? add_few<8, T> : height == 4 ? add_few<4, T> : height == 2 ? add_few<2, T> : add_few<1, T>;
}

void few_tokens(const ColumnWeights& c, const Epilogue& e, const Tokens& a, int threads) {
  const Few add = c.store == kFloat    ? few_of<float>(c.height)
                  : c.store == kBfloat ? few_of<uint16_t>(c.height)
                                       : few_of<int8_t>(c.height);
  const int64_t parts = (c.groups + c.part - 1) / c.part;
  parallel(parts, threads, [&](int64_t part) {
    const int64_t g0 = part * c.part, g1 = std::min(c.groups, g0 + c.part), n0 = g0 * c.height;
    const int64_t room = c.part * c.height + W;
    float* sums = scratch(0, a.tokens * room);
    std::fill(sums, sums + a.tokens * room, 0.0f);
    for (int64_t k = 0; k < c.chunks; ++k)
      for (int64_t g = g0; g < g1; ++g) {
        const int64_t slot = k * c.groups + g;
        for (int64_t t = 0; t < a.tokens; ++t)
          add(c, slot, a.x + t * a.x_stride + k * c.chunk, sums + t * room + (c.order[slot] - g0) * c.height);
      }
    const int64_t outputs = std::min(c.outputs - n0, (g1 - g0) * c.height);
    for (int64_t t = 0; t < a.tokens; ++t)
      for (int64_t n = 0; n < outputs; n += W) {
        const int64_t wide = std::min<int64_t>(W, outputs - n), at = t * a.y_stride + n0 + n;
        vf sum = load(sums + t * room + n);
        if (c.store == kInt8) sum *= load_some(c.scales + n0 + n, wide);
        if (e.bias != nullptr) sum += load_some(e.bias + n0 + n, wide);
        if (e.residual != nullptr) sum += load_some(e.residual + at, wide);
        store_some(a.y + at, activate(sum, e.act), wide);
      }
  });
}

}  // namespace

void column_linear(const ColumnWeights& c, const Epilogue& e, const Tokens& a, int threads) {
  if (a.tokens <= 4) return few_tokens(c, e, a, threads);
  const int most = most_vectors(c.height);
  const int64_t vectors = (a.tokens + W - 1) / W;
  const int64_t tiles = (vectors + most - 1) / most;
  const auto first_vector = [&](int64_t tile) { return tile * vectors / tiles; };
  // Parts of the outputs; with few tiles they are what threads share out.
  const int64_t parts = (c.groups + c.part - 1) / c.part;
  const int64_t shares = threads > 1 && tiles < 4 * threads ? std::min(parts, (4 * threads + tiles - 1) / tiles) : 1;

  parallel(tiles * shares, threads, [&](int64_t task) {
    const int64_t tile = task / shares, share = task % shares;
    const int64_t v0 = first_vector(tile);
    const int wide = static_cast<int>(first_vector(tile + 1) - v0);
    const int64_t step = wide * W, t0 = v0 * W;
    float* packed = scratch(0, a.inputs * step);
    for (int v = 0; v < wide; ++v)
      transpose_strip(a.x + (t0 + v * W) * a.x_stride, a.x_stride,
                      static_cast<int>(std::min<int64_t>(W, a.tokens - t0 - v * W)), a.inputs, packed + v * W, step);
    const Micro<Packed> run = pick<Packed>(c.height, wide);
    float* sums = scratch(1, c.part * c.height * step);
    for (int64_t part = parts * share / shares; part < parts * (share + 1) / shares; ++part) {
      sum_part<Packed>(
          c, part, step, run, [&](int64_t k) { return Packed{packed + k * c.chunk * step}; }, sums, scratch);
      const int64_t n0 = part * c.part * c.height, n = std::min(c.outputs - n0, c.part * c.height);
      for (int v = 0; v < wide; ++v) {
        const int64_t t = t0 + v * W;
        write_rows(sums + v * W, step, static_cast<int>(std::min<int64_t>(W, a.tokens - t)), n, e, n0,
                   a.y + t * a.y_stride + n0, a.y_stride,
                   e.residual == nullptr ? nullptr : e.residual + t * a.y_stride + n0);
      }
    }
  });
}

}  // namespace openwork::OW_ISA
