// Images through columns of weights: tiles of output positions are packed as tokens are.
#include "column.hpp"
#include "pool.hpp"
#include "taps.hpp"

namespace openwork::OW_ISA {
namespace {

constexpr int64_t kSums = 64 << 10;  // sums of a tile that stay in the second cache while chunks of inputs pass

// Sums [output][step] of one vector of positions become pieces of rows of y, channels first.
void write_channels(const float* sums, int64_t step, int64_t positions, int64_t outputs, const Epilogue& e,
                    int64_t first, float* y, int64_t plane, const float* residual) {
  for (int64_t n = 0; n < outputs; ++n) {
    vf sum = load(sums + n * step);
    if (e.bias != nullptr) sum += splat(e.bias[first + n]);
    if (residual != nullptr) sum += load_some(residual + n * plane, positions);
    sum = e.act == kNone ? sum : activate(sum, e.act);
    if (positions == W)
      store(y + n * plane, sum);
    else
      store_some(y + n * plane, sum, positions);
  }
}

}  // namespace

void column_conv(const ColumnWeights& c, const Epilogue& e, const Images& a, int threads) {
  if (a.channels_last && a.pointwise()) {
    const int64_t tokens = a.batch * a.height * a.width;
    return column_linear(c, e, Tokens{a.x, a.y, tokens, a.channels, a.channels, c.outputs}, threads);
  }
  const Taps taps(a);
  const int most = most_vectors(c.height);
  const int64_t plane = taps.positions, vectors = (plane + W - 1) / W;
  const int64_t parts = (c.groups + c.part - 1) / c.part, inputs = a.kernel_h * a.kernel_w * a.channels;
  const int64_t group = taps.direct ? a.batch : together(a.batch, taps.image, threads);
  const Cuts evenly(vectors, most, c.height, group, threads, parts);
  const int64_t tiles = evenly.tiles, shares = evenly.shares;
  const auto first_vector = [&](int64_t tile) { return tile * vectors / tiles; };
  const int64_t planes = static_cast<int64_t>(taps.planes.size()), cuts = threads > 1 ? (a.channels + 63) / 64 : 1;
  float* laid = taps.direct ? nullptr : scratch(2, group * taps.image);

  for (int64_t b0 = 0; b0 < a.batch; b0 += group) {
    const int64_t count = std::min(group, a.batch - b0);
    if (!taps.direct)
      parallel(count * planes * cuts, threads, [&](int64_t task) {
        const int64_t b = task / (planes * cuts), cut = task % cuts;
        const int64_t c0 = a.channels * cut / cuts, c1 = a.channels * (cut + 1) / cuts;
        taps.fill(b0 + b, taps.planes[task / cuts % planes], c0, c1, laid + b * taps.image);
      });
    parallel(count * tiles * shares, threads, [&](int64_t task) {
      const int64_t b = task / (tiles * shares), tile = task / shares % tiles, share = task % shares;
      const int64_t v0 = first_vector(tile);
      const int wide = static_cast<int>(first_vector(tile + 1) - v0);
      const int64_t step = wide * W;
      const float* image =
          taps.direct ? a.x + (b0 + b) * a.channels * a.height * a.width : laid + b * taps.image;
      float* packed = scratch(0, c.chunk * step);
      const Micro run = pick(c.height, wide);
      const int64_t part_sums = c.part * c.height * step, end = parts * (share + 1) / shares;
      const int64_t span = std::max<int64_t>(1, kSums / part_sums);
      float* sums = scratch(1, std::min(span, parts) * part_sums);
      for (int64_t p0 = parts * share / shares; p0 < end; p0 += span) {
        const int64_t p1 = std::min(end, p0 + span);
        for (int64_t k = 0; k < c.chunks; ++k) {
          taps.pack(image, k * c.chunk, std::min(inputs, (k + 1) * c.chunk), v0, wide, packed);
          for (int64_t p = p0; p < p1; ++p) add_chunk(c, k, p, run, packed, sums + (p - p0) * part_sums, scratch);
        }
        for (int64_t p = p0; p < p1; ++p) {
          float* done = sums + (p - p0) * part_sums;
          scale_part(c, p, step, done);
          const int64_t n0 = p * c.part * c.height, n = std::min(c.outputs - n0, c.part * c.height);
          for (int v = 0; v < wide; ++v) {
            const int64_t at = (v0 + v) * W, positions = std::min<int64_t>(W, plane - at);
            const int64_t first = a.channels_last ? ((b0 + b) * plane + at) * c.outputs + n0
                                                  : ((b0 + b) * c.outputs + n0) * plane + at;
            const float* residual = e.residual == nullptr ? nullptr : e.residual + first;
            if (a.channels_last)
              write_rows(done + v * W, step, static_cast<int>(positions), n, e, n0, a.y + first, c.outputs, residual);
            else
              write_channels(done + v * W, step, positions, n, e, n0, a.y + first, plane, residual);
          }
        }
      }
    });
  }
}

}  // namespace openwork::OW_ISA
