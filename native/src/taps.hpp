// Images as columns of weights read them: [channel][output position] for every position of the kernel.
//
// Without strides, and with rows of outputs as long as those of the image, that is the image itself, shifted, without
// the lanes that lie in its padding; with channels last it is turned over first. All others are laid out as
// [plane][channel][output position]. A plane serves a kernel column and a phase of the rows' stride, and holds nothing
// but what outputs read: output positions follow each other without a gap from row to row, whatever stride and padding,
// and a kernel row is a shift by whole rows.
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
  bool shifted, direct;  // whether a single plane is enough, and whether the image is that plane
  int64_t positions, image = 0;
  std::vector<Plane> planes;
  std::vector<Tap> taps;
  std::vector<Lanes> lanes;  // shifted: [kernel position][vector of output positions]

  explicit Taps(const Images& given) : a(given), positions(given.out_h * given.out_w) {
    shifted = a.stride_h == 1 && a.stride_w == 1 && a.out_w == a.width;
    direct = shifted && !a.channels_last;
    shifted ? find_lanes() : find_planes();
  }

  // Fills channels [c0, c1) of a plane.
  void fill(int64_t index, const Plane& p, int64_t c0, int64_t c1, float* to) const {
    const int64_t start = p.shift - a.pad_w, behind = a.width - start;
    // Outputs [low, high) of a row read the image, the others its padding.
    const int64_t low = std::min(a.out_w, start >= 0 ? 0 : (-start + a.stride_w - 1) / a.stride_w);
    const int64_t high = behind <= 0 ? low : std::max(low, std::min(a.out_w, (behind - 1) / a.stride_w + 1));
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

  // Copies inputs [first, last) at `vectors` vectors of positions from vector `begin` on into a tile [input][vector].
  void pack(const float* from, int64_t first, int64_t last, int64_t begin, int vectors, float* to) const {
    shifted ? pack_of<8, true>(from, first, last, begin, vectors, to)
            : pack_of<8, false>(from, first, last, begin, vectors, to);
  }

 private:
  void find_planes() {
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

  void find_lanes() {
    if (!direct) {
      planes.push_back({a.pad_w, a.pad_h, a.height, 0, a.height * a.width});
      image = a.channels * a.height * a.width;
    }
    const int64_t vectors = (positions + W - 1) / W;
    for (int64_t i = 0; i < a.kernel_h; ++i)
      for (int64_t j = 0; j < a.kernel_w; ++j) {
        const int64_t down = i * a.dilation_h - a.pad_h, right = j * a.dilation_w - a.pad_w;
        taps.push_back({down * a.width + right, a.height * a.width});
        int64_t y = down, x = right;  // where the image is read
        for (int64_t v = 0; v < vectors; ++v) {
          uint32_t bits = 0;
          for (int64_t p = v * W; p < std::min(positions, (v + 1) * W); ++p) {
            if (y >= 0 && y < a.height && x >= 0 && x < a.width) bits |= 1u << (p - v * W);
            if (++x == right + a.out_w) {
              x = right;
              ++y;
            }
          }
          lanes.push_back(lanes_of(bits));
        }
      }
  }

  template <int V, bool Shifted>
  void pack_of(const float* image, int64_t first, int64_t last, int64_t begin, int vectors, float* to) const {
    if constexpr (V > 1) {
      if (vectors < V) return pack_of<V - 1, Shifted>(image, first, last, begin, vectors, to);
    }
    for (int64_t t = first / a.channels, c = first % a.channels; first < last; ++t, c = 0) {
      const int64_t length = taps[t].length, end = std::min(a.channels, c + last - first);
      const float* from = image + taps[t].begin + begin * W + c * length;
      Lanes there[V] = {};
      if constexpr (Shifted)
        for (int v = 0; v < V; ++v) there[v] = lanes[t * ((positions + W - 1) / W) + begin + v];
      first += end - c;
      for (; c < end; ++c, from += length, to += V * W)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
          store(to + v * W, Shifted ? load_lanes(from + v * W, there[v]) : load(from + v * W));
    }
  }
};

}  // namespace openwork::OW_ISA
