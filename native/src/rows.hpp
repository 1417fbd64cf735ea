// Images with channels last, read row by row: offsets of the blocks, and rows with their padding.
#pragma once

#include <limits>
#include <stdexcept>
#include <vector>

#include "block.hpp"

namespace openwork::OW_ISA {

// Bands of output rows that are done one after another, or side by side: their padded rows stay beside the weights.
inline int64_t bands_of(const Window& a, int64_t bytes, int threads) {
  const int64_t row = std::max<int64_t>(1, (a.width + 2 * a.pad_w) * a.channels * bytes);
  const int64_t reach = (a.kernel_h - 1) * a.dilation_h + 1;
  const int64_t fit = std::max<int64_t>(1, ((int64_t{192} << 10) / row - reach) / a.stride_h + 1);
  int64_t bands = (a.out_h + fit - 1) / fit;
  if (threads > 1) bands = std::max(bands, (4 * threads + a.batch - 1) / a.batch);
  return std::min(bands, a.out_h);
}

// Where each block finds its inputs, counted from the first pixel under the kernel, in rows with their padding.
inline std::vector<int32_t> row_offsets(const BlockWeights& b, const Window& a) {
  const int64_t wide = a.width + 2 * a.pad_w, reach = (a.kernel_h - 1) * a.dilation_h + 1;
  if (reach > std::numeric_limits<int32_t>::max() / std::max<int64_t>(1, wide * a.channels))
    throw std::length_error("openwork: the rows under a convolution's kernel hold more than 2^31 numbers; use smaller images");
  std::vector<int32_t> offsets(b.starts[b.strips]);
  for (size_t i = 0; i < offsets.size(); ++i) {
    const int64_t position = b.inputs[i] / a.channels, channel = b.inputs[i] % a.channels;
    const int64_t y = position / a.kernel_w * a.dilation_h, x = position % a.kernel_w * a.dilation_w;
    offsets[i] = static_cast<int32_t>((y * wide + x) * a.channels + channel);
  }
  return offsets;
}

// Padded rows [first, first + count) of an image, zeros around it.
template <typename T>
void pad_rows(const Window& a, const T* image, int64_t first, int64_t count, int64_t wide, T* to) {
  const int64_t row = wide * a.channels, left = a.pad_w * a.channels, middle = a.width * a.channels;
  for (int64_t r = first; r < first + count; ++r, to += row) {
    const int64_t y = r - a.pad_h;
    if (y < 0 || y >= a.height) {
      std::fill(to, to + row, T{0});
      continue;
    }
    std::fill(to, to + left, T{0});
    std::copy(image + y * middle, image + (y + 1) * middle, to + left);
    std::fill(to + left + middle, to + row, T{0});
  }
}

}  // namespace openwork::OW_ISA
