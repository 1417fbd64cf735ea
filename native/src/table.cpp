// All kernels of one instruction set.
#include "block.hpp"
#include "column.hpp"

namespace openwork::OW_ISA {

void bits_linear(const BitWeights&, const Epilogue&, const Tokens&, int);
void block_conv(const BlockWeights&, const Epilogue&, const Images&, int);
void column_conv(const ColumnWeights&, const Epilogue&, const Images&, int);

namespace {

#define OW_TEXT_(x) #x
#define OW_TEXT(x) OW_TEXT_(x)

int64_t strip(int64_t height) {
  // The widest register tile there is that divides the blocks, so that weights are read in the order they lie in.
  for (int64_t vectors : {kRegisters == 32 ? 4 : 2, 2, 1})
    if (height % (vectors * W) == 0) return vectors * W;
  return 0;
}

// Measured where the first cache holds 48 KiB (512-bit vectors) and 32 KiB (all others).
int64_t reach(int64_t height) { return ((W == 16 ? 40 : 24) << 10) / (most_vectors(height) * W * 4); }

int64_t visit(int64_t height) { return W < 16 ? 24 : height == 1 ? 16 : height == 2 ? 32 : 96; }

}  // namespace

#if defined(__AVX2__)
constexpr bool spreads = true;
#else
constexpr bool spreads = false;
#endif

extern const Kernels kernels = {OW_TEXT(OW_ISA), W,           strip,        reach,       visit,      spreads,
                                block_linear,    column_linear, bits_linear, block_conv, column_conv};

}  // namespace openwork::OW_ISA
