// At most four tokens through blocks of weights. Reading the weights takes the time, so they are read as they are
// stored, and at two places at once: a processor fetches two streams from memory faster than one, or than four.
#include <limits>
#include <type_traits>

#include "block.hpp"
#include "block_write.hpp"
#include "pool.hpp"

namespace openwork::OW_ISA {
namespace {

// Tokens are rows of x, `row` floats apart.
struct Few {
  const BlockWeights& b;
  const Epilogue& e;
  const Tokens& a;
  const float* x;
  int64_t row;
  int64_t down;  // outputs of the strips that other tiles do
};

// Two inputs' weights of an output side by side.
struct Paired {
  uint16_t one;
};

// Strips [strip, last), one after the other.
template <typename T>
struct Stream {
  int64_t strip = 0, last = 0, block = 0, end = 0;
  const T* w = nullptr;

  void open(const Few& f, int64_t first, int64_t behind) {
    strip = first;
    last = behind;
    if (strip == last) return;
    block = f.b.starts[strip];
    end = f.b.starts[strip + 1];
    w = static_cast<const T*>(f.b.values) + block * f.b.depth * f.b.height + f.down * (std::is_same_v<T, Paired> ? 2 : 1);
  }
};

// The sums of a strip that has no more blocks become outputs; says whether the stream goes on.
template <int MT, int NV, typename T>
OW_INLINE bool pass(const Few& f, Stream<T>& s, vf (&acc)[MT][NV]) {
  while (s.strip < s.last && s.block == s.end) {
    const int64_t n = s.strip * f.b.height + f.down;
    if (n < f.b.outputs) {
      Tile t{};
      write_to(t, f.b, f.e, f.a.y, 0, f.a.y_stride, n);
      write_tile<MT, NV>(t, acc);
      if (t.act != kNone && t.act != kRelu)
        activate_tile(t.y, t.y_stride, MT, std::min<int64_t>(t.outputs, NV * W), t.act);
    }
#pragma GCC unroll 4
    for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = vf{};
    s.open(f, s.strip + 1, s.last);
  }
  return s.strip < s.last;
}

// The next `count` blocks of S streams side by side.
template <int MT, int NV, int S, typename T>
OW_INLINE void add(const Few& f, Stream<T>* streams, int64_t count, vf (*acc)[MT][NV]) {
  const int64_t depth = f.b.depth, height = f.b.height;
  for (int64_t i = 0; i < count; ++i) {
    const T* w[S];
    const float* x[S];
    constexpr bool scaled = sizeof(T) == 1;
    vf sum[S][MT][NV];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      w[s] = streams[s].w;
      x[s] = f.x + f.b.inputs[streams[s].block + i];
      streams[s].w += depth * height;
#pragma GCC unroll 4
      for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[s][m][v] = scaled ? vf{} : acc[s][m][v];
    }
    constexpr int step = std::is_same_v<T, Paired> ? 2 : 1;
    constexpr int64_t ahead = 4096;  // bytes
    int64_t at = 0;
    for (int64_t k = 0; k < depth; k += step, at += step * height)
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          __builtin_prefetch(reinterpret_cast<const char*>(w[s] + at + v * step * W) + ahead);
          vf wv[step];
          if constexpr (step == 2) {
            const Pair pair = load_pair(&w[s][at + v * 2 * W].one);
            wv[0] = pair.first;
            wv[1] = pair.second;
          } else {
            wv[0] = widen(w[s] + at + v * W);
          }
#pragma GCC unroll 2
          for (int j = 0; j < step; ++j)
#pragma GCC unroll 4
            for (int m = 0; m < MT; ++m) sum[s][m][v] = fma(splat(x[s][m * f.row + k + j]), wv[j], sum[s][m][v]);
        }
      }
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const vf factor = splat(scaled ? f.b.scales[streams[s].block + i] : 1.0f);
#pragma GCC unroll 4
      for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[s][m][v] = scaled ? fma(factor, sum[s][m][v], acc[s][m][v]) : sum[s][m][v];
    }
  }
  for (int s = 0; s < S; ++s) streams[s].block += count;
}

// One share of the strips for tokens [0, MT).
template <int MT, int NV, typename T>
void run(const Few& f, int64_t part, int64_t parts) {
  constexpr int room = kRegisters - 4, S = MT * NV * 2 <= room ? 2 : 1;
  vf acc[S][MT][NV] = {};
  Stream<T> streams[S];
  for (int s = 0; s < S; ++s)
    streams[s].open(f, first_strip(f.b, part * S + s, parts * S), first_strip(f.b, part * S + s + 1, parts * S));
  for (;;) {
    bool all = true;
    int64_t count = std::numeric_limits<int64_t>::max();
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      all &= pass<MT, NV>(f, streams[s], acc[s]);
      count = std::min(count, streams[s].end - streams[s].block);
    }
    if (!all) break;
    add<MT, NV, S>(f, streams, count, acc);
  }
  for (int s = 0; s < S; ++s)
    while (pass<MT, NV>(f, streams[s], acc[s]))
      add<MT, NV, 1>(f, streams + s, streams[s].end - streams[s].block, acc + s);
}

using Run = void (*)(const Few&, int64_t, int64_t);

template <int NV, typename T>
Run run_of(int64_t tokens) {
  return tokens == 1 ? run<1, NV, T> : tokens == 2 ? run<2, NV, T> : tokens == 3 ? run<3, NV, T> : run<4, NV, T>;
}

template <typename T>
Run run_of(int nv, int64_t tokens) {
  if constexpr (kRegisters == 32) {
    if (nv == 4) return run_of<4, T>(tokens);
  }
  return nv == 2 ? run_of<2, T>(tokens) : run_of<1, T>(tokens);
}

}  // namespace

void block_few(const BlockWeights& b, const Epilogue& e, const Tokens& a, int threads) {
  if (a.tokens == 0) return;
  Few f{b, e, a, a.x, a.x_stride, 0};
  const int64_t padded = (a.inputs + b.depth - 1) / b.depth * b.depth;
  if (padded != a.inputs) {  // a block sticks out over their end
    float* room = scratch(0, a.tokens * padded);
    for (int64_t t = 0; t < a.tokens; ++t) {
      std::copy(a.x + t * a.x_stride, a.x + t * a.x_stride + a.inputs, room + t * padded);
      std::fill(room + t * padded + a.inputs, room + (t + 1) * padded, 0.0f);
    }
    f.x = room;
    f.row = padded;
  }
  const int nv = vectors_of(b.height);
  const Run go = b.store == kPairs    ? run_of<Paired>(nv, a.tokens)
                 : b.store == kBfloat ? run_of<uint16_t>(nv, a.tokens)
                 : b.store == kInt8   ? run_of<int8_t>(nv, a.tokens)
                                      : run_of<float>(nv, a.tokens);
  const int64_t parts = std::min<int64_t>(b.strips, threads > 1 ? 4 * threads : 1);
  for (; f.down < b.height; f.down += nv * W)
    parallel(parts, threads, [&](int64_t part) { go(f, part, parts); });
}

}  // namespace openwork::OW_ISA
