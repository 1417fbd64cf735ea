// Blocks of weights in register tiles: what a tile needs, and weights as floats.
#pragma once

#include <algorithm>

#include "kernels.hpp"
#include "simd.hpp"
#include "widen.hpp"

namespace openwork::OW_ISA {

constexpr int kRegisters = OW_WIDTH == 16 ? 32 : 16;

// Tokens in a register tile that is NV vectors of outputs wide; NV registers more hold weights, one an activation.
constexpr int most_tokens(int nv) { return std::min((kRegisters - nv - 1) / nv, 24); }

// Vectors side by side in the register tile of a strip.
constexpr int vectors_of(int64_t height) {
  const int64_t v = height / W;
  return v % 4 == 0 && kRegisters == 32 ? 4 : v % 2 == 0 ? 2 : 1;
}

// How the tokens of a tile lie, from the offset of a block on:
//   packed  x[offset + k * step + token]
//   rows    x[offset + k + token * row]
//   panels  of kPanel inputs, `row` floats apart, whose tokens are kPanelRow apart: a constant distance is part of an
//           instruction, which saves one for every product; only for nv = 1
enum class Lie { kPacked, kRows, kPanels };
constexpr int64_t kPanel = 256, kPanelRow = kPanel + 16;

// While tiles pass over the blocks [first, last) `calls` times, they fetch as many behind them, the first few calls an
// equal part each: of a model, the next weights lie in memory.
struct Fetch {
  const char* next = nullptr;
  int64_t stride = 0;  // bytes for every input

  Fetch() = default;
  Fetch(const BlockWeights& b, int64_t first, int64_t last, int64_t call, int64_t calls) {
    const int64_t parts = std::min<int64_t>(calls, 8), row = b.height * bytes_of(b.store);
    const char* behind = static_cast<const char*>(b.values) + last * b.depth * row;
    const bool idle = call >= parts;  // an address that is there costs least
    next = idle ? static_cast<const char*>(b.values) : behind + call * (last - first) * b.depth * row / parts;
    stride = idle ? 0 : row / parts;
  }
};

struct Tile {
  const float* x;
  const int32_t* offsets;  // of the blocks
  int64_t step, row;
  int64_t depth, height;
  const float* w;
  float* y;  // first token, first output
  int64_t y_stride, outputs;  // outputs that exist from here on
  const float* bias;
  const float* residual;
  int act;
  bool past;  // outputs go past the caches; not those that are activated once they are written
  Fetch fetch;
};

// Where the outputs of a tile go, from output `n` on: `at` floats into the result, whose tokens are `stride` apart.
inline void write_to(Tile& t, const BlockWeights& b, const Epilogue& e, float* y, int64_t at, int64_t stride, int64_t n) {
  t.y = y + at + n;
  t.y_stride = stride;
  t.outputs = b.outputs - n;
  t.bias = e.bias == nullptr ? nullptr : e.bias + n;
  t.residual = e.residual == nullptr ? nullptr : e.residual + at + n;
  t.act = e.act;
}

// The kernel of tiles of `tokens` tokens, `nv` vectors of outputs wide: from the tile of the first strip on, through
// `strips` of them, whose blocks lie one behind the other.
using RunTile = void (*)(const Tile&, const int64_t* starts, int64_t strips);
RunTile tile_of(int nv, int tokens, Lie lie);

// At most four tokens.
void block_few(const BlockWeights&, const Epilogue&, const Tokens&, int threads);

void block_linear(const BlockWeights&, const Epilogue&, const Tokens&, int threads);

// Images with channels last whose blocks lie inside one pixel need not be laid out.
bool reads_rows(const BlockWeights& b, const Images& a);
void block_conv_rows(const BlockWeights&, const Epilogue&, const Images&, int threads);

// Where part `part` of `parts` of the strips begins, when they are shared out evenly by blocks.
inline int64_t first_strip(const BlockWeights& b, int64_t part, int64_t parts) {
  const int64_t blocks = b.starts[b.strips] + b.strips;  // an empty strip costs about as much as a block
  int64_t low = 0, high = b.strips;
  while (low < high && part < parts) {
    const int64_t middle = (low + high) / 2;
    (b.starts[middle] + middle) * parts < blocks * part ? low = middle + 1 : high = middle;
  }
  return high;
}

// How many super-tiles of tokens there are, and how many parts of the strips for each of them. A super-tile of tiles of
// `bytes` fits half the second cache; groups of strips pass over it one after another.
struct SharedOut {
  int64_t supers, parts;
};
inline SharedOut shared_out(const BlockWeights& b, int64_t tiles, int64_t bytes, int threads) {
  const int64_t fit = std::max<int64_t>(1, (512 << 10) / std::max<int64_t>(1, bytes));
  int64_t supers = (tiles + fit - 1) / fit;
  if (supers < threads) supers = std::min<int64_t>(tiles, threads);
  const int64_t parts = threads > 1 && supers < 4 * threads ? (4 * threads + supers - 1) / supers : 1;
  return {supers, std::min(parts, b.strips)};
}

// One behind the last of the strips [first, last) that pass over tokens together with strip `first`: so many weights at
// most, or that one alone.
inline int64_t group_end(const BlockWeights& b, int64_t first, int64_t last, int64_t weights) {
  int64_t end = first + 1;
  while (end < last && (b.starts[end + 1] - b.starts[first]) * b.depth * b.height <= weights) ++end;
  return end;
}

// A range of blocks as floats: themselves, or widened into `room`.
inline const float* widened(const BlockWeights& b, int64_t first, int64_t last, float* room) {
  const int64_t size = b.depth * b.height;
  if (b.store == kFloat) return static_cast<const float*>(b.values) + first * size;
  for (int64_t i = first; i < last; ++i) {
    float* to = room + (i - first) * size;
    if (b.store == kPairs) {
      const uint16_t* from = static_cast<const uint16_t*>(b.values) + i * size;
      for (int64_t k = 0; k < size; k += 2 * b.height)
        for (int64_t n = 0; n < b.height; n += W) {
          const Pair pair = load_pair(from + k + 2 * n);
          store(to + k + n, pair.first);
          store(to + k + b.height + n, pair.second);
        }
    } else if (b.store == kBfloat) {
      const uint16_t* from = static_cast<const uint16_t*>(b.values) + i * size;
      for (int64_t j = 0; j < size; j += W) store(to + j, widen(from + j));
    } else {
      const int8_t* from = static_cast<const int8_t*>(b.values) + i * size;
      const vf factor = splat(b.scales[i]);
      for (int64_t j = 0; j < size; j += W) store(to + j, widen(from + j) * factor);
    }
  }
  return room;
}

}  // namespace openwork::OW_ISA
