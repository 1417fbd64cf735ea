// Images with channels last through blocks of weights, read where they lie: outputs of a row are tokens, and every
// kernel position is a run of inputs at an offset of its own.
#include "pool.hpp"
#include "rows.hpp"

namespace openwork::OW_ISA {
namespace {

constexpr int64_t kTogether = 32 << 10;  // weights that pass over a band together

}  // namespace

bool reads_rows(const BlockWeights& b, const Images& a) { return a.channels_last && a.channels % b.depth == 0; }

void block_conv_rows(const BlockWeights& b, const Epilogue& e, const Images& a, int threads) {
  if (a.pointwise()) {
    const int64_t tokens = a.batch * a.height * a.width;
    return block_linear(b, e, Tokens{a.x, a.y, tokens, a.channels, a.channels, b.outputs}, threads);
  }
  const bool padded = a.pad_h + a.pad_w > 0;
  const int64_t wide = a.width + 2 * a.pad_w, row_floats = wide * a.channels, size = b.depth * b.height;
  const int64_t reach = (a.kernel_h - 1) * a.dilation_h + 1;  // rows under the kernel
  const std::vector<int32_t> offsets = row_offsets(b, a);
  const int nv = vectors_of(b.height), most = most_tokens(nv);
  const int64_t downs = b.height / (nv * W);
  const int64_t tiles = (a.out_w + most - 1) / most;
  const auto first_of = [&](int64_t tile) { return tile * a.out_w / tiles; };
  const int64_t bands = bands_of(a, 4, threads);

  parallel(a.batch * bands, threads, [&](int64_t task) {
    const int64_t image = task / bands, band = task % bands;
    const int64_t r0 = a.out_h * band / bands, r1 = a.out_h * (band + 1) / bands;
    const float* from = a.x + image * a.height * a.width * a.channels;
    const float* x = from + r0 * a.stride_h * row_floats;
    if (padded) {
      const int64_t rows = (r1 - r0 - 1) * a.stride_h + reach;
      float* room = scratch(0, rows * row_floats);
      pad_rows(a, from, r0 * a.stride_h, rows, wide, room);
      x = room;
    }
    for (int64_t s0 = 0, s1; s0 < b.strips; s0 = s1) {
      s1 = group_end(b, s0, b.strips, kTogether);
      const int64_t first = b.starts[s0], last = b.starts[s1];
      const float* w = widened(b, first, last, b.store == kFloat ? nullptr : scratch(1, (last - first) * size));
      for (int64_t row = r0; row < r1; ++row)
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t column = first_of(tile);
          const RunTile run = tile_of(nv, static_cast<int>(first_of(tile + 1) - column), Lie::kRows);
          const int64_t at = ((image * a.out_h + row) * a.out_w + column) * b.outputs;
          for (int64_t down = 0; down < downs; ++down) {
            const int64_t n = s0 * b.height + down * nv * W;
            Tile t{};
            t.x = x + (row - r0) * a.stride_h * row_floats + column * a.stride_w * a.channels;
            t.offsets = offsets.data() + first;
            t.row = a.stride_w * a.channels;
            t.depth = b.depth;
            t.height = b.height;
            t.w = w + down * nv * W;
            write_to(t, b, e, a.y, at, b.outputs, n);
            t.fetch = Fetch(b, first, last, ((row - r0) * tiles + tile) * downs + down, (r1 - r0) * tiles * downs);
            run(t, b.starts + s0, s1 - s0);
          }
        }
    }
  });
}

}  // namespace openwork::OW_ISA
