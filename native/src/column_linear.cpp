// Tokens through columns of weights.
#include "column.hpp"
#include "pool.hpp"

namespace openwork::OW_ISA {
namespace {

// The R weights of a column as one vector, which may be longer or shorter than the processor's.
template <int R>
struct Lanes;
template <>
struct Lanes<2> {
  typedef float Floats __attribute__((vector_size(8)));
};
template <>
struct Lanes<4> {
  typedef float Floats __attribute__((vector_size(16)));
};
template <>
struct Lanes<8> {
  typedef float Floats __attribute__((vector_size(32)));
};

template <int R>
struct Column {
  using Floats = typename Lanes<R>::Floats;

  template <typename T>
  static OW_INLINE Floats of(const T* w) {
#if defined(__AVX2__)
    if constexpr (R == 4) return reinterpret_cast<Floats>(four(w));
    if constexpr (R == 8) return reinterpret_cast<Floats>(eight(w));
#endif
    Floats f;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) f[r] = one(w[r]);
    return f;
  }
  static OW_INLINE void add(float* to, const Floats& sum) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) to[r] += sum[r];
  }
};

template <>
struct Column<1> {
  typedef float Floats;
  template <typename T>
  static OW_INLINE float of(const T* w) {
    return one(*w);
  }
  static OW_INLINE void add(float* to, float sum) { *to += sum; }
};

constexpr int64_t kFewAhead = 2048;  // bytes

// Fetches the weights and places of a stream ahead.
template <typename T>
OW_INLINE void fetch(const T* w, const uint16_t* inputs) {
  __builtin_prefetch(reinterpret_cast<const char*>(w) + kFewAhead);
  __builtin_prefetch(reinterpret_cast<const char*>(inputs) + kFewAhead);
}

// Parts whose slots are read side by side. Single weights keep the processor busy enough with two.
int64_t streams_of(int64_t height) { return height == 1 ? 2 : kStreams; }

// One or a few tokens: every column adds to the outputs of its group at once. Reading the weights takes the time, so
// the slots of S parts are read side by side. Single weights are multiplied by fours.
template <int R, typename T, int S>
void add_few(const ColumnWeights& c, const int64_t* slots, const float* x, float* const* sums) {
  constexpr int H = R == 1 ? 4 : R, U = S == 1 || R == 1 ? 4 : 2, N = R == 1 ? 1 : U;
  const T* w[S];
  const uint16_t* inputs[S];
  int64_t count[S], least = INT64_MAX;
  for (int s = 0; s < S; ++s) {
    w[s] = static_cast<const T*>(c.values) + c.starts[slots[s]] * R;
    inputs[s] = c.inputs + c.starts[slots[s]];
    count[s] = c.starts[slots[s] + 1] - c.starts[slots[s]];
    least = std::min(least, count[s]);
  }
  typename Column<H>::Floats acc[S][N] = {};
  const auto add = [&](int s, int64_t i) __attribute__((always_inline)) {
    if constexpr (R == 1) {
      const FourPlaces p(inputs[s] + i);
      acc[s][0] += typename Column<H>::Floats{x[p[0]], x[p[1]], x[p[2]], x[p[3]]} * Column<H>::of(w[s] + i);
    } else {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) acc[s][u] += x[inputs[s][i + u]] * Column<H>::of(w[s] + (i + u) * R);
    }
  };
  int64_t i = 0;
  if constexpr (R == 1)  // a line of weights and half a one of places
    for (; i + 16 <= least; i += 16)
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        fetch(w[s] + i, inputs[s] + i);
#pragma GCC unroll 4
        for (int four = 0; four < 16; four += 4) add(s, i + four);
      }
  for (; i + U <= least; i += U)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      if constexpr (R > 1) fetch(w[s] + i * R, inputs[s] + i);
      add(s, i);
    }
  for (int s = 0; s < S; ++s) {
    typename Column<R>::Floats rest{};
    int64_t j = i;
    if constexpr (R == 1)
      for (; j + 4 <= count[s]; j += 4) add(s, j);
    for (; j < count[s]; ++j) rest += x[inputs[s][j]] * Column<R>::of(w[s] + j * R);
    typename Column<H>::Floats sum = acc[s][0];
#pragma GCC unroll 4
    for (int n = 1; n < N; ++n) sum += acc[s][n];
    if constexpr (R == 1) {
      rest += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    } else {
      rest += sum;
    }
    Column<R>::add(sums[s], rest);
  }
}

using Few = void (*)(const ColumnWeights&, const int64_t*, const float*, float* const*);

template <typename T, int S>
Few few_of(int64_t height) {
  return height == 8   ? add_few<8, T, S>
         : height == 4 ? add_few<4, T, S>
         : height == 2 ? add_few<2, T, S>
                       : add_few<1, T, S>;
}

template <int S>
Few few_of(const ColumnWeights& c) {
  return c.store == kFloat    ? few_of<float, S>(c.height)
         : c.store == kBfloat ? few_of<uint16_t, S>(c.height)
                              : few_of<int8_t, S>(c.height);
}

void few_tokens(const ColumnWeights& c, const Epilogue& e, const Tokens& a, int threads) {
  const int64_t streams = streams_of(c.height);
  const Few add_one = few_of<1>(c), add_all = streams == 2 ? few_of<2>(c) : few_of<kStreams>(c);
  const int64_t parts = (c.groups + c.part - 1) / c.part, room = c.part * c.height + W;
  const int64_t beside = parts < streams * threads ? 1 : streams;  // parts of one task, `tasks` parts apart
  const int64_t tasks = (parts + beside - 1) / beside;
  parallel(tasks, threads, [&](int64_t task) {
    const int64_t here = (parts - task + tasks - 1) / tasks;
    float* sums = scratch(0, here * a.tokens * room);
    std::fill(sums, sums + here * a.tokens * room, 0.0f);
    const auto add = [&](Few run, int64_t first, int64_t count, int64_t k, int64_t g) {
      int64_t slots[kStreams];
      float* to[kStreams];
      for (int64_t t = 0; t < a.tokens; ++t) {
        for (int64_t s = 0; s < count; ++s) {
          const int64_t g0 = (task + (first + s) * tasks) * c.part;
          slots[s] = k * c.groups + g0 + g;
          to[s] = sums + ((first + s) * a.tokens + t) * room + (c.order[slots[s]] - g0) * c.height;
        }
        run(c, slots, a.x + t * a.x_stride + k * c.chunk, to);
      }
    };
    for (int64_t k = 0; k < c.chunks; ++k)
      for (int64_t g = 0; g < c.part; ++g) {
        int64_t has = 0;  // parts that have a group g; only the last one may not
        while (has < here && (task + has * tasks) * c.part + g < c.groups) ++has;
        if (has == streams)
          add(add_all, 0, streams, k, g);
        else
          for (int64_t s = 0; s < has; ++s) add(add_one, s, 1, k, g);
      }
    for (int64_t s = 0; s < here; ++s) {
      const int64_t n0 = (task + s * tasks) * c.part * c.height;
      const int64_t outputs = std::min(c.outputs - n0, c.part * c.height);
      for (int64_t t = 0; t < a.tokens; ++t)
        for (int64_t n = 0; n < outputs; n += W) {
          const vf sum = load(sums + (s * a.tokens + t) * room + n);
          finish(sum, c.store == kInt8 ? c.scales : nullptr, e, n0 + n, std::min<int64_t>(W, outputs - n), a.y_stride,
                 t, a.y);
        }
    }
  });
}

}  // namespace

void column_linear(const ColumnWeights& c, const Epilogue& e, const Tokens& a, int threads) {
  if (a.tokens <= 4) return few_tokens(c, e, a, threads);
  const int most = most_vectors(c.height);
  const int64_t vectors = (a.tokens + W - 1) / W;
  const int64_t parts = (c.groups + c.part - 1) / c.part;
  const Cuts cuts(vectors, most, c.height, 1, threads, parts);
  const bool past = passes(a.y, a.tokens, a.y_stride);
  const int64_t tiles = cuts.tiles, shares = cuts.shares;
  const auto first_vector = [&](int64_t tile) { return tile * vectors / tiles; };

  parallel(tiles * shares, threads, [&](int64_t task) {
    const int64_t tile = task / shares, share = task % shares;
    const int64_t v0 = first_vector(tile);
    const int wide = static_cast<int>(first_vector(tile + 1) - v0);
    const int64_t step = wide * W, t0 = v0 * W;
    float* packed = scratch(0, a.inputs * step);
    for (int v = 0; v < wide; ++v)
      transpose_strip(a.x + (t0 + v * W) * a.x_stride, a.x_stride,
                      static_cast<int>(std::min<int64_t>(W, a.tokens - t0 - v * W)), a.inputs, packed + v * W, step);
    const Micro run = pick(c.height, wide);
    float* sums = scratch(1, c.part * c.height * step);
    for (int64_t part = parts * share / shares; part < parts * (share + 1) / shares; ++part) {
      for (int64_t k = 0; k < c.chunks; ++k)
        add_chunk(c, k, part, run, packed + k * c.chunk * step, sums, scratch);
      scale_part(c, part, step, sums);
      const int64_t n0 = part * c.part * c.height, n = std::min(c.outputs - n0, c.part * c.height);
      for (int v = 0; v < wide; ++v) {
        const int64_t t = t0 + v * W;
        write_rows(sums + v * W, step, static_cast<int>(std::min<int64_t>(W, a.tokens - t)), n, e, n0,
                   a.y + t * a.y_stride + n0, a.y_stride,
                   e.residual == nullptr ? nullptr : e.residual + t * a.y_stride + n0, past && n0 % W == 0);
      }
    }
  });
}

}  // namespace openwork::OW_ISA
