// Images through columns of weights.
#include "column.hpp"
#include "images.hpp"

namespace openwork::OW_ISA {
namespace {

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

void column_conv(const ColumnWeights& c, const Epilogue& e, const Images& images, int threads) {
  const Planes planes(images, true, 1);
  const Images& a = planes.a;
  const int most = most_vectors(c.height);
  const int64_t per_row = (a.out_w + W - 1) / W, vectors = a.out_h * per_row;
  const int64_t tiles = (vectors + most - 1) / most;
  const auto first_vector = [&](int64_t tile) { return tile * vectors / tiles; };
  const int64_t parts = (c.groups + c.part - 1) / c.part;
  const int64_t group = together(planes, threads);
  const int64_t jobs = group * tiles;
  const int64_t shares = threads > 1 && jobs < 4 * threads ? std::min(parts, (4 * threads + jobs - 1) / jobs) : 1;
  float* laid = scratch(2, group * planes.image);

  for (int64_t b0 = 0; b0 < a.batch; b0 += group) {
    const int64_t count = std::min(group, a.batch - b0);
    parallel(count * planes.rows, threads, [&](int64_t task) {
      planes.fill(b0 + task / planes.rows, task % planes.rows, laid + task / planes.rows * planes.image);
    });
    parallel(count * tiles * shares, threads, [&](int64_t task) {
      const int64_t b = task / (tiles * shares), tile = task / shares % tiles, share = task % shares;
      const int64_t v0 = first_vector(tile);
      const int wide = static_cast<int>(first_vector(tile + 1) - v0);
      const int64_t step = wide * W;
      Scattered from;
      for (int v = 0; v < wide; ++v)
        from.bases[v] =
            laid + b * planes.image + (v0 + v) / per_row * planes.row_stride() + (v0 + v) % per_row * W;
      const Micro<Scattered> run = pick<Scattered>(c.height, wide);
      float* sums = scratch(1, c.part * c.height * step);
      for (int64_t part = parts * share / shares; part < parts * (share + 1) / shares; ++part) {
        sum_part<Scattered>(
            c, part, step, run,
            [&](int64_t k) {
              from.offsets = planes.offsets.data() + k * c.chunk;
              return from;
            },
            sums, scratch);
        const int64_t n0 = part * c.part * c.height, n = std::min(c.outputs - n0, c.part * c.height);
        for (int v = 0; v < wide; ++v) {
          const int64_t row = (v0 + v) / per_row, column = (v0 + v) % per_row * W;
          const int64_t positions = std::min<int64_t>(W, a.out_w - column), plane = a.out_h * a.out_w;
          if (a.channels_last) {
            const int64_t at = (((b0 + b) * a.out_h + row) * a.out_w + column) * c.outputs + n0;
            write_rows(sums + v * W, step, static_cast<int>(positions), n, e, n0, a.y + at, c.outputs,
                       e.residual == nullptr ? nullptr : e.residual + at);
          } else {
            const int64_t at = ((b0 + b) * c.outputs + n0) * plane + row * a.out_w + column;
            write_channels(sums + v * W, step, positions, n, e, n0, a.y + at, plane,
                           e.residual == nullptr ? nullptr : e.residual + at);
          }
        }
      }
    });
  }
}

}  // namespace openwork::OW_ISA
