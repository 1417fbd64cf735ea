// The jobs that kernels do, the same for every instruction set. All pointers are borrowed for one call.
#pragma once

#include <cstdint>

namespace openwork {

enum Act : int { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4, kRelu6 = 5 };

// How weights are stored. Sums are always float32. Pairs are bfloat16 as well, two inputs of an output side by side.
enum Store : int { kFloat = 0, kBfloat = 1, kInt8 = 2, kPairs = 3 };
constexpr int64_t bytes_of(int store) { return store == kFloat ? 4 : store == kInt8 ? 1 : 2; }  // of a weight

// What is done with a finished sum: add a bias per output, add a residual, activate.
struct Epilogue {
  const float* bias = nullptr;      // [outputs]
  const float* residual = nullptr;  // strides as those of the output
  int act = kNone;
};

// Blocks of weights, [strip][block][k][height]; a strip is `height` outputs, a block `depth` successive inputs. Pairs lie
// as [strip][block][k / 2][height][2], and `depth` is even.
// `height` is a multiple of the vector.
struct BlockWeights {
  const void* values;
  const float* scales;    // int8 only: [blocks]
  const int32_t* inputs;  // [blocks] first input of each block
  const int64_t* starts;  // [strips + 1] first block of each strip
  int64_t strips, height, depth, outputs;
  int store;
};

// Blocks of int8 for tokens that are rounded to int8 as well, [strip][block][k / 4][height][4]; `depth` is a multiple of
// four. `scales` belong to outputs, filled up to whole strips, as are the `sums` of an output's weights times 128.
struct DotWeights : BlockWeights {
  const int32_t* sums;
};

// Columns of weights, [chunk][slot][column][height]; a group is `height` outputs, a column one input.
// In every chunk of inputs the groups of each part stand in the order of their number of columns, so that loops of
// one length follow each other: `order` tells which group a slot holds.
struct ColumnWeights {
  const void* values;
  const float* scales;     // int8 only: [outputs rounded up to whole groups]
  const uint16_t* inputs;  // [columns] input of each column, counted from the start of its chunk
  const int64_t* starts;   // [chunks * groups + 1] first column of each slot
  const int32_t* order;    // [chunks * groups] group of each slot
  int64_t chunk, chunks, groups, height, outputs;
  int64_t part;  // groups in a part; the sums of a part stay in the cache
  int store;
};

// Single weights, row by row; sixteen more numbers follow the last value.
struct BitWeights {
  const void* values;
  const float* scales;    // int8 only: [outputs]
  const uint8_t* bits;    // [outputs][ceil(inputs / 8)], lowest first: which weights are stored
  const int64_t* starts;  // [outputs + 1] first value of each row
  int64_t outputs, inputs;
  int store;
};

// Tokens are rows: x[token * x_stride + input], y[token * y_stride + output].
struct Tokens {
  const float* x;
  float* y;
  int64_t tokens, inputs, x_stride, y_stride;
};

// The same in bfloat16; bias and sums are float32.
struct HalfTokens {
  const uint16_t* x;
  uint16_t* y;
  int64_t tokens, inputs, x_stride, y_stride;
};

struct HalfEpilogue {
  const float* bias = nullptr;
  const uint16_t* residual = nullptr;
  int act = kNone;
};

// A batch of images, channels first or last; so are the outputs. Inputs of the weights are (kernel row, kernel column,
// channel).
struct Window {
  int64_t batch, channels, height, width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t out_h, out_w;
  bool channels_last;

  // A 1 x 1 kernel without stride or padding: every position is a token.
  bool pointwise() const {
    return kernel_h == 1 && kernel_w == 1 && stride_h == 1 && stride_w == 1 && pad_h == 0 && pad_w == 0;
  }
};

struct Images : Window {
  const float* x;
  float* y;
};

// Channels last.
struct HalfImages : Window {
  const uint16_t* x;
  uint16_t* y;
};

using BlockDots = void (*)(const DotWeights&, const Epilogue&, const Tokens&, int threads);
using BlockDotsHalf = void (*)(const DotWeights&, const HalfEpilogue&, const HalfTokens&, int threads);
using BlockHalf = void (*)(const BlockWeights&, const HalfEpilogue&, const HalfTokens&, int threads);
using BlockHalfConv = void (*)(const BlockWeights&, const HalfEpilogue&, const HalfImages&, int threads);

struct Kernels {
  const char* name;
  int width;                          // floats in a vector
  int64_t (*strip)(int64_t height);   // height of strips for blocks of this height, 0 when there is no kernel for it
  int64_t (*reach)(int64_t height);   // inputs whose activations fit the L1 cache beside columns of this height
  int64_t (*visit)(int64_t height);   // columns that a visit to a group should bring, so that its sums are worth moving
  bool spreads;                       // has a fast way from bits to places
  void (*block_linear)(const BlockWeights&, const Epilogue&, const Tokens&, int threads);
  void (*column_linear)(const ColumnWeights&, const Epilogue&, const Tokens&, int threads);
  void (*bits_linear)(const BitWeights&, const Epilogue&, const Tokens&, int threads);
  void (*block_conv)(const BlockWeights&, const Epilogue&, const Images&, int threads);
  void (*column_conv)(const ColumnWeights&, const Epilogue&, const Images&, int threads);
  // Tokens in bfloat16 with pairs of weights, or with int8 of an even depth, where there is arithmetic for bfloat16;
  // blocks of convolutions lie inside one pixel.
  BlockHalf block_half = nullptr;
  BlockHalfConv block_half_conv = nullptr;
  BlockDots block_dots = nullptr;  // where there are dot products of int8
  BlockDotsHalf block_dots_half = nullptr;
};

// Processors with arithmetic in bfloat16, or with dot products of int8, run the kernels of AVX-512 for everything else.
namespace amx {
void block_half(const BlockWeights&, const HalfEpilogue&, const HalfTokens&, int threads);
void block_half_conv(const BlockWeights&, const HalfEpilogue&, const HalfImages&, int threads);
}
namespace avx512_bf16 {
void block_half(const BlockWeights&, const HalfEpilogue&, const HalfTokens&, int threads);
void block_half_conv(const BlockWeights&, const HalfEpilogue&, const HalfImages&, int threads);
}
namespace avx512_vnni {
void block_dots(const DotWeights&, const Epilogue&, const Tokens&, int threads);
void block_dots_half(const DotWeights&, const HalfEpilogue&, const HalfTokens&, int threads);
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace portable {
extern const Kernels kernels;
}

}  // namespace openwork
