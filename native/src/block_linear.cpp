// Tokens through blocks of weights.
#include "block.hpp"
#include "past.hpp"
#include "pool.hpp"

namespace openwork::OW_ISA {
namespace {

// Lines of one set of the first cache that tokens may take: of twelve beside AVX-512, of eight elsewhere.
constexpr int kSet = W == 16 ? 10 : 6;
constexpr int64_t kTogether = 64 << 10;  // weights that pass over a super-tile together
constexpr int64_t kNear = 256 << 10;     // inputs that the second cache still holds

// Rows of x, `to_stride` apart, with zeros behind the last input.
void copy_rows(const float* x, int64_t x_stride, int64_t rows, int64_t inputs, float* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, to += to_stride) {
    copy_run(x, inputs, to);
    std::fill(to + inputs, to + to_stride, 0.0f);
  }
}

// Rows of x into the second cache, in the order that memory likes: blocks read pieces of them. Always inline: g++ drops
// calls of a function that only fetches.
OW_INLINE void fetch_rows(const float* x, int64_t x_stride, int64_t rows, int64_t inputs) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride)
    for (int64_t i = 0; i < inputs; i += 16) __builtin_prefetch(x + i, 0, 2);
}

// Rows as panels, `most` each; the last one ends in zeros.
void copy_panels(const float* x, int64_t x_stride, int64_t rows, int64_t inputs, float* to, int64_t most) {
  for (int64_t k = 0; k < inputs; k += kPanel, to += most * kPanelRow)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = std::min(kPanel, inputs - k);
      copy_run(x + r * x_stride + k, n, to + r * kPanelRow);
      std::fill(to + r * kPanelRow + n, to + r * kPanelRow + kPanel, 0.0f);
    }
}

}  // namespace

void block_linear(const BlockWeights& b, const Epilogue& e, const Tokens& a, int threads) {
  if (a.tokens <= 4) return block_few(b, e, a, threads);
  const int nv = vectors_of(b.height);
  const int64_t downs = b.height / (nv * W);
  const int64_t padded = (a.inputs + b.depth - 1) / b.depth * b.depth, size = b.depth * b.height;
  // Tokens are read where they lie, unless a block sticks out over their end, or so many rows lie a multiple of 4 KiB
  // apart that they do not fit one set of the first cache; those are copied, a cache line further apart, when enough
  // weights use every input, and otherwise taken fewer at once.
  const bool one_set = a.x_stride % 1024 == 0, narrow = one_set && b.starts[b.strips] * size < 256 * a.inputs;
  const int most = narrow ? std::min(most_tokens(nv), kSet) : most_tokens(nv);
  const bool lie_well = padded == a.inputs && (!one_set || narrow || (most <= 8 && a.x_stride % 2048 != 0));
  const bool panels = nv == 1 && kPanel % b.depth == 0 && !narrow;  // always copied
  const int64_t row = panels ? most * kPanelRow : lie_well ? a.x_stride : padded + 16;
  const int64_t tile_floats = (a.inputs + kPanel - 1) / kPanel * row;  // of panels
  // Token tiles as even as can be; super-tiles of them fit half the L2 cache.
  const int64_t tiles = (a.tokens + most - 1) / most;
  const auto first_token = [&](int64_t tile) { return tile * a.tokens / tiles; };
  const int64_t cached = std::max<int64_t>(1, (512 << 10) / std::max<int64_t>(1, padded * 4 * most));
  const int64_t per_super = std::min<int64_t>(cached, std::max(1, 192 / most));
  int64_t supers = (tiles + per_super - 1) / per_super;
  // Threads that share tokens read all weights each, those that share strips all tokens: the smaller is read twice, and
  // what is copied costs more than what is read.
  const bool copied = panels || !lie_well;
  if (supers < threads && b.starts[b.strips] * size <= (copied ? 4 : 1) * a.tokens * a.inputs)
    supers = std::min<int64_t>(tiles, threads);
  // With fewer super-tiles than threads want, the strips are split as well, evenly by blocks.
  int64_t parts = threads > 1 && supers < 4 * threads ? (4 * threads + supers - 1) / supers : 1;
  parts = copied && supers % threads == 0 ? 1 : std::min(parts, b.strips);
  const bool past = (e.act == kNone || e.act == kRelu) && passes(a.y, a.tokens, a.y_stride);
  const bool far = a.tokens * a.inputs > kNear;
  parallel(supers * parts, threads, [&](int64_t task) {
    const int64_t super = task / parts, part = task % parts;
    const int64_t t0 = super * tiles / supers, t1 = (super + 1) * tiles / supers;
    const int64_t s0 = first_strip(b, part, parts), s1 = first_strip(b, part + 1, parts);
    if (s0 >= s1) return;
    const int64_t base = first_token(t0);
    const float* x = a.x + base * a.x_stride;
    if (panels) {
      float* room = scratch(0, (t1 - t0) * tile_floats);
      for (int64_t tile = t0; tile < t1; ++tile) {
        const int64_t at = first_token(tile), count = first_token(tile + 1) - at;
        copy_panels(a.x + at * a.x_stride, a.x_stride, count, a.inputs, room + (tile - t0) * tile_floats, most);
      }
      x = room;
    } else if (!lie_well) {
      const int64_t count = first_token(t1) - base;
      float* room = scratch(0, count * row);
      copy_rows(x, a.x_stride, count, a.inputs, room, row);
      x = room;
    } else if (far && (part == 0 || one_set)) {  // those of one set drive each other out
      fetch_rows(x, a.x_stride, first_token(t1) - base, a.inputs);
    }
    for (int64_t g0 = s0, g1; g0 < s1; g0 = g1) {
      g1 = group_end(b, g0, s1, kTogether);
      const int64_t first = b.starts[g0], last = b.starts[g1];
      const float* w = widened(b, first, last, b.store == kFloat ? nullptr : scratch(1, (last - first) * size));
      for (int64_t tile = t0; tile < t1; ++tile) {
        const int64_t at = first_token(tile);
        const int count = static_cast<int>(first_token(tile + 1) - at);
        const RunTile run = tile_of(nv, count, panels ? Lie::kPanels : Lie::kRows);
        for (int64_t down = 0; down < downs; ++down) {
          const int64_t n = g0 * b.height + down * nv * W;
          Tile t{};
          t.x = x + (panels ? (tile - t0) * tile_floats : (at - base) * row);
          t.row = row;
          t.offsets = b.inputs + first;
          t.depth = b.depth;
          t.height = b.height;
          t.w = w + down * nv * W;
          write_to(t, b, e, a.y, at * a.y_stride, a.y_stride, n);
          t.past = past;
          t.fetch = Fetch(b, first, last, (tile - t0) * downs + down, (t1 - t0) * downs);
          run(t, b.starts + g0, g1 - g0);
        }
      }
    }
  });
}

}  // namespace openwork::OW_ISA
