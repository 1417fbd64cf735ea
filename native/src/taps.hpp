// Images laid out for columns of weights: [plane][channel][output position]. A plane serves a kernel column and a phase
// of the rows' stride, and holds nothing but what outputs read: output positions follow each other without a gap from
// row to row, whatever stride and padding, and a kernel row is a shift by whole rows.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.hpp"
#include "laying.hpp"

namespace openwork::OW_ISA {

struct Taps {
  struct Plane {
    int64_t shift, phase, rows, begin, length;  // columns, rows; floats before it and of a channel
  };
  struct Tap {
    int64_t begin, length;  // of a kernel position: where its first channel begins, floats of a channel
  };

  Images a;
  bool direct;  // a 1 x 1 kernel, channels first: the image itself is its plane
  int64_t positions, image = 0;
  std::vector<Plane> planes;
  std::vector<Tap> taps;

  explicit Taps(const Images& given) : a(given), positions(given.out_h * given.out_w) {
    direct = !a.channels_last && a.pointwise();
    std::vector<size_t> plane_of;
    for (int64_t i = 0; i < a.kernel_h; ++i)
      for (int64_t j = 0; j < a.kernel_w; ++j) {
        const int64_t shift = j * a.dilation_w, phase = i * a.dilation_h % a.stride_h;
        const int64_t rows = i * a.dilation_h / a.stride_h + a.out_h;
        size_t p = 0;
        while (p < planes.size() && (planes[p].shift != shift || planes[p].phase != phase)) ++p;
        if (p == planes.size()) planes.push_back({shift, phase, 0, 0, 0});
        planes[p].rows = std::max(planes[p].rows, rows);
        plane_of.push_back(p);
      }
    for (Plane& p : planes) {
      p.length = p.rows * a.out_w;
      p.begin = image;
      image += a.channels * p.length;
    }
    image += W;  // vectors may reach beyond the last position
    for (size_t t = 0; t < plane_of.size(); ++t) {
      const Plane& p = planes[plane_of[t]];
      const int64_t row = static_cast<int64_t>(t) / a.kernel_w * a.dilation_h / a.stride_h;
      taps.push_back({p.begin + row * a.out_w, p.length});
    }
  }

  // Fills channels [c0, c1) of a plane.
  void fill(int64_t index, const Plane& p, int64_t c0, int64_t c1, float* to) const {
    const int64_t start = p.shift - a.pad_w, behind = a.width - start;
    // Outputs [low, high) of a row read the image, the others its padding.
    const int64_t low = std::min(a.out_w, start >= 0 ? 0 : (-start + a.stride_w - 1) / a.stride_w);
    const int64_t high = behind <= 0 ? low : std::max(low, std::min(a.out_w, (behind - 1) / a.stride_w + 1));
    if (!a.channels_last && a.stride_h == 1 && a.stride_w == 1 && a.out_w == a.width) {
      // Rows follow each other as those of the image do.
      const int64_t first = std::min(a.pad_h, p.rows), last = std::max(first, std::min(p.rows, a.pad_h + a.height));
      const int64_t area = a.height * a.width, count = (last - first) * a.out_w;
      const int64_t head = std::max<int64_t>(0, -start), tail = std::min(count, area - start);
      for (int64_t c = c0; c < c1; ++c) {
        const float* from = a.x + (index * a.channels + c) * area;
        float* out = to + p.begin + c * p.length;
        std::fill(out, out + first * a.out_w, 0.0f);
        std::fill(out + last * a.out_w, out + p.length, 0.0f);
        out += first * a.out_w;
        if (head < tail) std::copy(from + head + start, from + tail + start, out + head);
        for (float* row = out; row != out + count; row += a.out_w) {
          for (int64_t i = 0; i < low; ++i) row[i] = 0.0f;
          for (int64_t i = high; i < a.out_w; ++i) row[i] = 0.0f;
        }
      }
      return;
    }
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t y = p.phase + r * a.stride_h - a.pad_h;
      const bool inside = y >= 0 && y < a.height;
      float* out = to + p.begin + r * a.out_w;
      if (!inside)
        for (int64_t c = c0; c < c1; ++c) std::fill_n(out + c * p.length, a.out_w, 0.0f);
      else if (a.channels_last)
        turn_rows(a.x + ((index * a.height + y) * a.width + start) * a.channels + c0, low, high, a.out_w,
                  a.stride_w * a.channels, c1 - c0, out + c0 * p.length, p.length);
      else
        for (int64_t c = c0; c < c1; ++c)
          lay_row(a.x + ((index * a.channels + c) * a.height + y) * a.width + start, low, high, a.out_w, a.stride_w,
                  out + c * p.length);
    }
  }

  // Copies inputs [first, last) at `vectors` vectors of positions from `position` on into a tile [input][vector].
  void pack(const float* laid, int64_t first, int64_t last, int64_t position, int vectors, float* to) const {
    pack_of<8>(laid, first, last, position, vectors, to);
  }

 private:
  template <int V>
  void pack_of(const float* laid, int64_t first, int64_t last, int64_t position, int vectors, float* to) const {
    if constexpr (V > 1) {
      if (vectors < V) return pack_of<V - 1>(laid, first, last, position, vectors, to);
    }
    const int64_t left = positions - position - (V - 1) * W;  // in the last vector, which may end behind the image
    for (int64_t t = first / a.channels, c = first % a.channels; first < last; ++t, c = 0) {
      const float* from = laid + taps[t].begin + position + c * taps[t].length;
      for (; c < a.channels && first < last; ++c, ++first, from += taps[t].length, to += V * W) {
#pragma GCC unroll 8
        for (int v = 0; v + 1 < V; ++v) store(to + v * W, load(from + v * W));
        const float* end = from + (V - 1) * W;
        store(to + (V - 1) * W, left < W && direct ? load_some(end, left) : load(end));
      }
    }
  }
};

}  // namespace openwork::OW_ISA
