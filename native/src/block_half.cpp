// Tokens in bfloat16 through blocks of bfloat16 weights.
#include "half.hpp"
#include "pool.hpp"

namespace openwork::OW_ISA {

void block_half(const BlockWeights& b, const HalfEpilogue& e, const HalfTokens& a, int threads) {
  const int64_t padded = (a.inputs + b.depth - 1) / b.depth * b.depth, size = b.depth * b.height;
  constexpr int64_t most = kRun * kRuns;
  const int64_t tiles = (a.tokens + most - 1) / most;
  // Super-tiles of tokens fit half the second cache; groups of strips pass over it one after another.
  const int64_t fit = std::max<int64_t>(1, (512 << 10) / (padded * 2 * most));
  int64_t supers = (tiles + fit - 1) / fit;
  if (supers < threads) supers = std::min<int64_t>(tiles, threads);
  int64_t parts = threads > 1 && supers < 4 * threads ? (4 * threads + supers - 1) / supers : 1;
  parts = std::min(parts, b.strips);
  parallel(supers * parts, threads, [&](int64_t task) {
    const int64_t super = task / parts, part = task % parts;
    const int64_t t0 = super * tiles / supers * most;
    const int64_t t1 = std::min(a.tokens, (super + 1) * tiles / supers * most), count = t1 - t0;
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
    const int64_t tokens = std::min(most, count);
    const int64_t top = std::min(kRun, tokens), low = tokens - top;
    const Tiles tiles_of_processor(top, low, b.depth);
    float* room = scratch(1, 2 * most * kWide);
    Sums done{room, 0, 0, 0, 0, 0, 0};
    for (int64_t g0 = s0, g1; g0 < s1; g0 = g1) {
      g1 = g0 + 1;
      while (g1 < s1 && (b.starts[g1 + 1] - b.starts[g0]) * size * 2 <= kWeights) ++g1;
      const int64_t first = b.starts[g0];
      const uint16_t* w = paired(b, first, b.starts[g1], scratch);
      for (int64_t t = 0; t < count; t += tokens) {
        const int64_t at = std::min(t, count - tokens);
        for (int64_t s = g0; s < g1; ++s)
          for (int64_t down = 0; down < b.height && s * b.height + down < b.outputs; down += kWide) {
            const int64_t n = s * b.height + down, from = b.starts[s];
            const int64_t outputs = std::min<int64_t>({kWide, b.height - down, b.outputs - n});
            const int64_t place = (t0 + at) * a.y_stride + n;
            const Strip strip{x + at * row, row, kRun * row, b.inputs + from, b.starts[s + 1] - from, b.depth, b.height,
                              w + (from - first) * size + down * 2};
            float* sums = done.at == room ? room + most * kWide : room;
            sum_strip(strip, top, low, b.height - down > W, sums, [&] { write(done, e, a.y_stride, a.y); });
            done = {sums, top, low, n, outputs, place, place + kRun * a.y_stride};
          }
      }
    }
    write(done, e, a.y_stride, a.y);
  });
}

}  // namespace openwork::OW_ISA
