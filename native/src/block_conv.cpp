// Images through blocks of weights.
#include "act.hpp"
#include "block.hpp"
#include "images.hpp"

namespace openwork::OW_ISA {
namespace {

constexpr int64_t kTogether = 32 << 10;  // weights that pass over some output rows while they are in the cache

// One output row [position][outputs], `stride` apart, becomes rows of y, channels first. `room` floats from y on are
// written by this task or by none: what a whole vector brings too much is written over later.
void write_channels(const float* sums, int64_t stride, int64_t positions, int64_t outputs, const Epilogue& e,
                    int64_t first, float* y, int64_t plane, const float* residual, int64_t room) {
  vf r[W];
  for (int64_t x = 0; x < positions; x += W) {
    const int64_t wide = std::min<int64_t>(W, positions - x);
    for (int64_t n = 0; n < outputs; n += W) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) r[i] = i < wide ? load(sums + (x + i) * stride + n) : vf{};
      transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        if (n + i >= outputs) break;
        const int64_t at = (n + i) * plane + x;
        vf sum = r[i];
        if (e.bias != nullptr) sum += splat(e.bias[first + n + i]);
        if (residual != nullptr) sum += load_some(residual + at, wide);
        sum = e.act == kNone ? sum : activate(sum, e.act);
        if (room - x >= W)  // a part of a vector costs several whole ones
          store(y + at, sum);
        else
          store_some(y + at, sum, wide);
      }
    }
  }
}

}  // namespace

void block_conv(const BlockWeights& b, const Epilogue& e, const Images& images, int threads) {
  if (reads_rows(b, images)) return block_conv_rows(b, e, images, threads);
  const Planes planes(images, b.depth);
  const Images& a = planes.a;
  const int nv = vectors_of(b.height);
  const int most = most_tokens(nv);
  const int64_t tiles = (a.out_w + most - 1) / most;
  const auto first_of = [&](int64_t tile) { return tile * a.out_w / tiles; };
  const int64_t size = b.depth * b.height;
  const int64_t blocks = b.starts[b.strips];
  const int64_t downs = b.height / (nv * W);
  std::vector<int32_t> offsets(blocks);
  for (int64_t i = 0; i < blocks; ++i) offsets[i] = planes.offsets[b.inputs[i]];
  const int64_t group = together(a.batch, planes.image, threads);
  // Threads share strips where channels come first: rows and positions that lie side by side share cache lines there.
  const int64_t wanted = (4 * threads - 1) / group + 1;  // tasks of an image
  const int64_t shares = threads == 1 || a.channels_last ? 1 : std::min(b.strips, wanted);
  const int64_t bands = std::min(a.out_h, std::max((a.out_h + 7) / 8, wanted / shares));
  // Positions of a band of a single row are shared out instead.
  const int64_t pieces = a.out_h == 1 ? std::min(tiles, std::max((tiles + 15) / 16, wanted / shares)) : 1;
  float* room = planes.direct ? nullptr : scratch(2, group * planes.image);

  for (int64_t b0 = 0; b0 < a.batch; b0 += group) {
    const int64_t count = std::min(group, a.batch - b0);
    const float* laid = planes.direct ? a.x + b0 * planes.image : room;
    if (!planes.direct)
      parallel(count * planes.rows, threads, [&](int64_t task) {
        planes.fill(b0 + task / planes.rows, task % planes.rows, room + task / planes.rows * planes.image);
      });
    parallel(count * shares * bands * pieces, threads, [&](int64_t task) {
      const int64_t piece = task % pieces, band = task / pieces % bands, share = task / (pieces * bands) % shares;
      const int64_t image = task / (pieces * bands * shares);
      const int64_t tile0 = tiles * piece / pieces, tile1 = tiles * (piece + 1) / pieces;
      const int64_t x0 = first_of(tile0), positions = first_of(tile1) - x0;
      const int64_t behind = first_strip(b, share + 1, shares);
      for (int64_t s0 = first_strip(b, share, shares), s1; s0 < behind; s0 = s1) {
        s1 = group_end(b, s0, behind, kTogether);
        const int64_t first = b.starts[s0], last = b.starts[s1], n0 = s0 * b.height;
        const int64_t outputs = std::min(b.outputs, s1 * b.height) - n0, wide = (s1 - s0) * b.height;
        const float* w =
            widened(b, first, last, b.store == kFloat ? nullptr : scratch(1, (last - first) * size));
        float* sums = a.channels_last ? nullptr : scratch(0, positions * wide);
        const int64_t r0 = a.out_h * band / bands, r1 = a.out_h * (band + 1) / bands;
        const int64_t calls = (r1 - r0) * (tile1 - tile0) * downs;
        for (int64_t row = r0; row < r1; ++row) {
          const int64_t place = ((b0 + image) * a.out_h + row) * a.out_w;
          for (int64_t tile = tile0; tile < tile1; ++tile) {
            const int64_t x = first_of(tile);
            const RunTile run = tile_of(nv, static_cast<int>(first_of(tile + 1) - x), Lie::kPacked);
            for (int64_t down = 0; down < downs; ++down) {
              const int64_t r = down * nv * W;
              Tile t{};
              t.x = laid + image * planes.image + row * planes.row_stride() + x;
              t.offsets = offsets.data() + first;
              t.step = planes.length;
              t.depth = b.depth;
              t.height = b.height;
              t.w = w + r;
              if (a.channels_last) {
                write_to(t, b, e, a.y, (place + x) * b.outputs, b.outputs, n0 + r);
              } else {  // strips of sums are whole
                t.y = sums + (x - x0) * wide + r;
                t.y_stride = wide;
                t.outputs = wide - r;
              }
              t.fetch = Fetch(b, first, last, ((row - r0) * (tile1 - tile0) + tile - tile0) * downs + down, calls);
              run(t, b.starts + s0, s1 - s0);
            }
          }
          if (!a.channels_last) {
            const int64_t plane = a.out_h * a.out_w;
            const int64_t at = ((b0 + image) * b.outputs + n0) * plane + row * a.out_w + x0;
            write_channels(sums, wide, positions, outputs, e, n0, a.y + at, plane,
                           e.residual == nullptr ? nullptr : e.residual + at, (r1 - row - 1) * a.out_w + positions);
          }
        }
      }
    });
  }
}

}  // namespace openwork::OW_ISA
