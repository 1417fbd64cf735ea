// Images in bfloat16, channels last, through blocks of bfloat16 weights, read where they lie: runs of outputs of a row are
// tokens, and every kernel position is a run of inputs at an offset of its own.
#include "half.hpp"
#include "rows.hpp"

namespace openwork::OW_ISA {

void block_half(const BlockWeights&, const HalfEpilogue&, const HalfTokens&, int threads);

void block_half_conv(const BlockWeights& b, const HalfEpilogue& e, const HalfImages& a, int threads) {
  if (a.pointwise()) {
    const int64_t tokens = a.batch * a.height * a.width;
    return block_half(b, e, HalfTokens{a.x, a.y, tokens, a.channels, a.channels, b.outputs}, threads);
  }
  const bool padded = a.pad_h + a.pad_w > 0;
  const int64_t wide = a.width + 2 * a.pad_w, row_numbers = wide * a.channels;
  const int64_t reach = (a.kernel_h - 1) * a.dilation_h + 1;
  const std::vector<int32_t> offsets = row_offsets(b, a);
  // All runs have as many outputs; the last one of a row may begin inside the one before it.
  const int64_t runs = (a.out_w + kRun - 1) / kRun, length = (a.out_w + runs - 1) / runs;
  const int64_t bands = bands_of(a, 2, threads);

  parallel(a.batch * bands, threads, [&](int64_t task) {
    const int64_t image = task / bands, band = task % bands;
    const int64_t r0 = a.out_h * band / bands, r1 = a.out_h * (band + 1) / bands, count = (r1 - r0) * runs;
    const uint16_t* from = a.x + image * a.height * a.width * a.channels;
    const uint16_t* x = from + r0 * a.stride_h * row_numbers;
    if (padded) {
      const int64_t rows = (r1 - r0 - 1) * a.stride_h + reach;
      auto* room = reinterpret_cast<uint16_t*>(scratch(0, (rows * row_numbers + 1) / 2));
      pad_rows(a, from, r0 * a.stride_h, rows, wide, room);
      x = room;
    }
    // Where run i begins, in the rows and in the outputs.
    const auto column_of = [&](int64_t i) { return std::min(i % runs * length, a.out_w - length); };
    const auto begin_of = [&](int64_t i) {
      return i / runs * a.stride_h * row_numbers + column_of(i) * a.stride_w * a.channels;
    };
    const auto place_of = [&](int64_t i) {
      return ((image * a.out_h + r0 + i / runs) * a.out_w + column_of(i)) * b.outputs;
    };
    const Tiles tiles_of_processor(length, kRuns == 2 ? length : 0, b.depth);
    Products products(b, e, offsets.data(), a.stride_w * a.channels, b.outputs, a.y);
    for (int64_t g0 = 0, g1; g0 < b.strips; g0 = g1) {
      g1 = group_end(b, g0, b.strips, kTogether);
      const uint16_t* w = paired(b, b.starts[g0], b.starts[g1], scratch);
      for (int64_t i = 0; i < count; i += kRuns) {
        const int64_t second = std::min(i + kRuns - 1, count - 1), low = second > i ? length : 0;
        products.add(g0, g1, w, x + begin_of(i), begin_of(second) - begin_of(i), length, low, place_of(i),
                     place_of(second));
      }
    }
    products.finish();
  });
}

}  // namespace openwork::OW_ISA
