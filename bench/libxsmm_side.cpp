// Blocks of weights by LIBXSMM's batch-reduce products, the fastest open kernels there are for them: a comparator.
//   g++ -O3 -march=native -shared -fPIC libxsmm_side.cpp -o side.so -lxsmm -lxsmmnoblas -lpthread -ldl
#include <libxsmm.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kPad = 16;  // floats: rows a power of two apart would share sets of the cache

struct Layer {
  int64_t inputs, outputs, height, tile;
  std::vector<const float*> w, x, now_w, now_x;  // of every block, and of one strip: the products move what they are given
  std::vector<int64_t> starts;     // of every strip
  std::vector<float> tokens;       // one tile of them, padded
  libxsmm_smmfunction_reducebatch_addr product;
};

}  // namespace

extern "C" {

const char* target() { return libxsmm_get_target_arch(); }

// Weights lie as [block][input][output of the block]; columns are the blocks' first inputs. Null if there is no kernel.
void* make(const float* weights, const int64_t* columns, const int64_t* starts, int64_t inputs, int64_t outputs,
           int64_t height, int64_t width, int64_t tile) {
  libxsmm_init();
  auto* l = new Layer{inputs, outputs, height, tile, {}, {}, {}, {}, {}, {}, nullptr};
  l->starts.assign(starts, starts + outputs / height + 1);
  l->tokens.resize(tile * (inputs + kPad));
  for (int64_t b = 0; b < l->starts.back(); ++b) {
    l->w.push_back(weights + b * height * width);
    l->x.push_back(l->tokens.data() + columns[b]);
  }
  const int lda = height, ldb = inputs + kPad, ldc = outputs, flags = LIBXSMM_GEMM_FLAG_NONE;
  const int prefetch = LIBXSMM_GEMM_PREFETCH_NONE;
  const float alpha = 1, beta = 0;
  l->product =
      libxsmm_smmdispatch_reducebatch_addr(height, tile, width, &lda, &ldb, &ldc, &alpha, &beta, &flags, &prefetch);
  if (l->product != nullptr) return l;
  delete l;
  return nullptr;
}

void drop(void* layer) { delete static_cast<Layer*>(layer); }

// Whole tiles of tokens, row after row, as openwork takes and gives them.
void run(void* layer, const float* x, float* y, int64_t tokens) {
  Layer& l = *static_cast<Layer*>(layer);
  const int64_t row = l.inputs + kPad, strips = static_cast<int64_t>(l.starts.size()) - 1;
  for (int64_t t = 0; t < tokens; t += l.tile) {
    for (int64_t i = 0; i < l.tile; ++i)
      std::memcpy(l.tokens.data() + i * row, x + (t + i) * l.inputs, l.inputs * sizeof(float));
    for (int64_t s = 0; s < strips; ++s) {
      const unsigned long long count = l.starts[s + 1] - l.starts[s];
      float* out = y + t * l.outputs + s * l.height;
      if (count > 0) {
        l.now_w.assign(&l.w[l.starts[s]], &l.w[l.starts[s]] + count);
        l.now_x.assign(&l.x[l.starts[s]], &l.x[l.starts[s]] + count);
        l.product(l.now_w.data(), l.now_x.data(), out, &count);
      } else {
        for (int64_t i = 0; i < l.tile; ++i) std::fill_n(out + i * l.outputs, l.height, 0.0f);
      }
    }
  }
}
}
