// Tokens in bfloat16 through blocks of bfloat16 weights.
#include "half.hpp"
#include "transpose.hpp"

namespace openwork::OW_ISA {
namespace {

// Whether tokens lie so that those of a tile fall into the same few places of the first cache, and whether they can be
// packed. It costs a tenth of a small sparse product, so others are read where they lie.
bool packs(const HalfTokens& a) {
  const bool pairs = a.inputs % 2 == 0 && reinterpret_cast<uintptr_t>(a.x) % 4 == 0;
  return kRuns == 1 && pairs && a.x_stride * 2 % 2048 == 0;
}

// A run of tokens as [pair of inputs][token], zeros beyond the inputs.
void pack_run(const HalfTokens& a, int64_t first, int64_t tokens, int64_t padded, float* to) {
  const auto* x = reinterpret_cast<const float*>(a.x + first * a.x_stride);  // moved, never computed with
  transpose_strip(x, a.x_stride / 2, static_cast<int>(tokens), a.inputs / 2, to, W);
  std::fill(to + a.inputs / 2 * W, to + padded / 2 * W, 0.0f);
}

}  // namespace

void block_half(const BlockWeights& b, const HalfEpilogue& e, const HalfTokens& a, int threads) {
  const int64_t padded = (a.inputs + b.depth - 1) / b.depth * b.depth;
  constexpr int64_t most = kRun * kRuns;
  const int64_t tiles = (a.tokens + most - 1) / most;
  const auto [supers, parts] = shared_out(b, tiles, padded * 2 * most, threads);
  parallel(supers * parts, threads, [&, supers = supers, parts = parts](int64_t task) {
    const int64_t super = task / parts, part = task % parts;
    const int64_t t0 = super * tiles / supers * most;
    const int64_t t1 = std::min(a.tokens, (super + 1) * tiles / supers * most), count = t1 - t0;
    const int64_t s0 = first_strip(b, part, parts), s1 = first_strip(b, part + 1, parts);
    if (s0 >= s1 || count <= 0) return;
    const uint16_t* x = a.x + t0 * a.x_stride;
    int64_t row = a.x_stride;
    const int64_t tokens = std::min(most, count), run = padded / 2 * W;  // floats of a packed one
    float* runs = nullptr;
    if (packs(a)) {
      runs = scratch(0, (count + tokens - 1) / tokens * run);
      for (int64_t t = 0; t < count; t += tokens)
        pack_run(a, t0 + std::min(t, count - tokens), tokens, padded, runs + t / tokens * run);
      row = 0;
    } else if (padded != a.inputs) {
      auto* wide = reinterpret_cast<uint16_t*>(scratch(0, (count * padded + 1) / 2));
      for (int64_t t = 0; t < count; ++t) {
        std::copy(x + t * row, x + t * row + a.inputs, wide + t * padded);
        std::fill(wide + t * padded + a.inputs, wide + (t + 1) * padded, uint16_t{0});
      }
      x = wide;
      row = padded;
    }
    // All tiles have as many tokens; the last one may begin inside the one before it.
    const int64_t top = std::min(kRun, tokens), low = tokens - top;
    const Tiles tiles_of_processor(top, low, b.depth);
    Products products(b, e, b.inputs, row, a.y_stride, a.y);
    for (int64_t g0 = s0, g1; g0 < s1; g0 = g1) {
      g1 = group_end(b, g0, s1, kTogether);
      const uint16_t* w = paired(b, b.starts[g0], b.starts[g1], scratch);
      for (int64_t t = 0; t < count; t += tokens) {
        const int64_t at = std::min(t, count - tokens), place = (t0 + at) * a.y_stride;
        const uint16_t* from = runs == nullptr ? x + at * row : reinterpret_cast<const uint16_t*>(runs + t / tokens * run);
        products.add(g0, g1, w, from, kRun * row, top, low, place, place + kRun * a.y_stride);
      }
    }
    products.finish();
  });
}

}  // namespace openwork::OW_ISA
