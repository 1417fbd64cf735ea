// Images laid out for kernels: [padded row][plane][channel][position], a plane for every phase of the columns. Rows are
// outermost, so that the offsets of a kernel's inputs stay small however tall the image is.
//
// Element i of a row in a plane is the padded input at column i * stride + shift, so that outputs side by side read
// activations side by side, whatever the stride: there is a plane for each phase of it.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "kernels.hpp"
#include "laying.hpp"
#include "pool.hpp"

namespace openwork::OW_ISA {

struct Planes {
  Images a;  // a 1 x 1 kernel without stride or padding sees its image as a single row
  int64_t rows, length, count, image;  // padded rows, floats in a row of one channel, planes, floats of an image
  int64_t laid;                        // channels, filled up with zeros to whole blocks
  bool direct = false;                 // such a kernel with channels first reads the images where they lie
  std::vector<int64_t> shifts;         // of each plane
  std::vector<int32_t> offsets;        // of each input of the weights (kernel row, kernel column, channel)

  Planes(const Images& given, int64_t depth) : a(given) {
    if (a.kernel_h * a.kernel_w > 1 && a.channels % depth != 0)
      throw std::invalid_argument("openwork: blocks must not reach over two positions of the convolution's kernel");
    if (a.pointwise()) {
      a.width *= a.height;
      a.out_w *= a.out_h;
      a.height = a.out_h = 1;
      direct = !a.channels_last && a.channels % depth == 0;
    }
    rows = (a.out_h - 1) * a.stride_h + (a.kernel_h - 1) * a.dilation_h + 1;
    int64_t reach = 0;
    std::vector<int64_t> plane_of(a.kernel_w), begin_of(a.kernel_w);
    for (int64_t j = 0; j < a.kernel_w; ++j) {
      const int64_t column = j * a.dilation_w;
      const int64_t shift = column % a.stride_w;
      begin_of[j] = (column - shift) / a.stride_w;
      reach = std::max(reach, begin_of[j]);
      auto found = std::find(shifts.begin(), shifts.end(), shift);
      plane_of[j] = found - shifts.begin();
      if (found == shifts.end()) shifts.push_back(shift);
    }
    count = static_cast<int64_t>(shifts.size());
    length = direct ? a.out_w : (a.out_w + reach + W - 1) / W * W;
    laid = (a.channels + depth - 1) / depth * depth;
    image = rows * row_floats();
    if ((a.kernel_h - 1) * a.dilation_h + 1 > std::numeric_limits<int32_t>::max() / row_floats())
      throw std::length_error("openwork: the rows under a convolution's kernel hold more than 2^31 numbers; use smaller images");
    offsets.reserve(a.kernel_h * a.kernel_w * a.channels);
    for (int64_t i = 0; i < a.kernel_h; ++i)
      for (int64_t j = 0; j < a.kernel_w; ++j)
        for (int64_t c = 0; c < a.channels; ++c)
          offsets.push_back(static_cast<int32_t>(
              ((i * a.dilation_h * count + plane_of[j]) * laid + c) * length + begin_of[j]));
  }

  int64_t row_floats() const { return count * laid * length; }             // of a padded row in all planes
  int64_t row_stride() const { return a.stride_h * row_floats(); }  // from an output row to the next

  // Fills padded row `row` of one image in all planes.
  void fill(int64_t image_index, int64_t row, float* to) const {
    const int64_t y = row - a.pad_h;
    const bool inside = y >= 0 && y < a.height;
    for (int64_t p = 0; p < count; ++p) {
      float* out = to + (row * count + p) * laid * length;
      // Elements [low, high) of the row come from the image, the others are padding.
      const int64_t start = shifts[p] - a.pad_w;
      const int64_t low = inside ? std::min(length, start >= 0 ? 0 : (-start + a.stride_w - 1) / a.stride_w) : length;
      const int64_t behind = a.width - start;
      const int64_t high = !inside || behind <= 0 ? low : std::max(low, std::min(length, (behind - 1) / a.stride_w + 1));
      const float* from = a.x + image_index * a.channels * a.height * a.width;
      const int64_t row_of_image = inside ? y : 0;
      if (a.channels_last)
        turn_rows(from + (row_of_image * a.width + start) * a.channels, low, high, length, a.stride_w * a.channels,
                  a.channels, out, length);
      else
        lay_rows(from + row_of_image * a.width + start, a.height * a.width, a.channels, low, high, length, a.stride_w,
                 out);
      std::fill(out + a.channels * length, out + laid * length, 0.0f);
    }
  }
};

}  // namespace openwork::OW_ISA
