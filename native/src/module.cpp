// The Python module: kernels by name, pointers as whole numbers. openwork/kernels checks every argument first.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"

namespace nb = nanobind;
using namespace openwork;

namespace {

// OW_HAVE_* says which kernels were built: those that the compiler knew.
#if defined(OW_HAVE_AVX512)
// The kernels of AVX-512, with what more this processor multiplies.
Kernels with(const char* name, BlockHalf half = nullptr, BlockHalfConv conv = nullptr) {
  Kernels found = avx512::kernels;
  found.name = name;
  found.block_half = half;
  found.block_half_conv = conv;
#if defined(OW_HAVE_AVX512_VNNI)
  if (__builtin_cpu_supports("avx512vnni")) {
    found.block_dots = avx512_vnni::block_dots;
    found.block_dots_half = avx512_vnni::block_dots_half;
  }
#endif
  return found;
}
#endif

#if defined(OW_HAVE_AMX)
// Matrix tiles must be asked for: their state makes every thread's memory for signals larger.
bool tiles_allowed() {
#if defined(__linux__)
  constexpr long ask = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, ask, tile_data) == 0;
#else
  return false;
#endif
}
#endif

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> found;
#if defined(OW_HAVE_AVX2) || defined(OW_HAVE_AVX512)
  __builtin_cpu_init();
#endif
#if defined(OW_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
#if defined(OW_HAVE_AMX)
    static const Kernels amx = with("amx", amx::block_half, amx::block_half_conv);
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-tile") &&
        __builtin_cpu_supports("amx-bf16") && tiles_allowed())
      found.push_back(&amx);
#endif
#if defined(OW_HAVE_AVX512_BF16)
    static const Kernels bf16 = with("avx512_bf16", avx512_bf16::block_half, avx512_bf16::block_half_conv);
    const bool dots = __builtin_cpu_supports("avx512bf16"), quick = __builtin_cpu_is("amd");
    if (dots && quick) found.push_back(&bf16);
#endif
    static const Kernels plain = with("avx512");
    found.push_back(&plain);
#if defined(OW_HAVE_AVX512_BF16)
    if (dots && !quick) found.push_back(&bf16);  // slower than float32 on Intel's: there only when it is asked for
#endif
  }
#endif
#if defined(OW_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
#endif
  found.push_back(&portable::kernels);
  return found;
}

const Kernels* chosen = usable().front();

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Layouts are made for the instruction set in use; one of another set would be read past its end.
void demand(bool fits) {
  if (!fits)
    throw std::invalid_argument(std::string("openwork: the weights lie in an order that the ") + chosen->name +
                                " kernels cannot read; pack the model again on this machine");
}

BlockWeights block_weights(nb::tuple t) {
  const BlockWeights found = {at<const void>(nb::cast<uintptr_t>(t[0])),
          at<const float>(nb::cast<uintptr_t>(t[1])),
          at<const int32_t>(nb::cast<uintptr_t>(t[2])),
          at<const int64_t>(nb::cast<uintptr_t>(t[3])),
          nb::cast<int64_t>(t[4]),
          nb::cast<int64_t>(t[5]),
          nb::cast<int64_t>(t[6]),
          nb::cast<int64_t>(t[7]),
          nb::cast<int>(t[8])};
  demand(found.height > 0 && found.height % chosen->width == 0 && found.depth > 0 &&
         (found.store != kPairs || found.depth % 2 == 0));
  return found;
}

// Whether tokens in bfloat16 are multiplied by these weights as they are.
bool halves(const BlockWeights& b) { return b.store == kPairs || (b.store == kInt8 && b.depth % 2 == 0); }

ColumnWeights column_weights(nb::tuple t) {
  const ColumnWeights found = {at<const void>(nb::cast<uintptr_t>(t[0])),
          at<const float>(nb::cast<uintptr_t>(t[1])),
          at<const uint16_t>(nb::cast<uintptr_t>(t[2])),
          at<const int64_t>(nb::cast<uintptr_t>(t[3])),
          at<const int32_t>(nb::cast<uintptr_t>(t[4])),
          nb::cast<int64_t>(t[5]),
          nb::cast<int64_t>(t[6]),
          nb::cast<int64_t>(t[7]),
          nb::cast<int64_t>(t[8]),
          nb::cast<int64_t>(t[9]),
          nb::cast<int64_t>(t[10]),
          nb::cast<int>(t[11])};
  demand(found.height == 1 || found.height == 2 || found.height == 4 || found.height == 8);
  return found;
}

BitWeights bit_weights(nb::tuple t) {
  return {at<const void>(nb::cast<uintptr_t>(t[0])),
          at<const float>(nb::cast<uintptr_t>(t[1])),
          at<const uint8_t>(nb::cast<uintptr_t>(t[2])),
          at<const int64_t>(nb::cast<uintptr_t>(t[3])),
          nb::cast<int64_t>(t[4]),
          nb::cast<int64_t>(t[5]),
          nb::cast<int>(t[6])};
}

DotWeights dot_weights(nb::tuple t) {
  DotWeights found{};
  static_cast<BlockWeights&>(found) = block_weights(t);
  found.sums = at<const int32_t>(nb::cast<uintptr_t>(t[9]));
  demand(chosen->block_dots != nullptr && found.store == kInt8 && found.depth % 4 == 0);
  return found;
}

// Bias and activation; the residual comes with the call.
template <typename E>
E epilogue(nb::tuple t) {
  E e{};
  e.bias = at<const float>(nb::cast<uintptr_t>(t[0]));
  e.act = nb::cast<int>(t[1]);
  return e;
}

// Tokens, or those in bfloat16, but where they lie.
template <typename A>
A tokens(nb::tuple t) {
  A a{};
  int64_t* numbers[] = {&a.tokens, &a.inputs, &a.x_stride, &a.y_stride};
  int i = 0;
  for (int64_t* n : numbers) *n = nb::cast<int64_t>(t[i++]);
  return a;
}

// Images, or those in bfloat16, but where they lie.
template <typename A>
A images(nb::tuple t) {
  A a{};
  int64_t* numbers[] = {&a.batch,    &a.channels, &a.height, &a.width, &a.kernel_h,   &a.kernel_w,   &a.stride_h,
                        &a.stride_w, &a.pad_h,    &a.pad_w,  &a.dilation_h, &a.dilation_w, &a.out_h, &a.out_w};
  int i = 0;
  for (int64_t* n : numbers) *n = nb::cast<int64_t>(t[i++]);
  a.channels_last = nb::cast<bool>(t[i]);
  return a;
}

// A kernel and all that it reads but inputs and residual, for one call or many: what Python holds of it would have to
// come from memory number by number.
struct Call {
  std::function<void(uintptr_t x, uintptr_t y, uintptr_t residual)> run;
};

template <typename W, typename E, typename A>
Call call(void (*kernel)(const W&, const E&, const A&, int), const W& weights, const E& end, const A& given, int threads) {
  return {[=](uintptr_t x, uintptr_t y, uintptr_t residual) {
    E e = end;
    A a = given;
    e.residual = reinterpret_cast<decltype(e.residual)>(residual);
    a.x = reinterpret_cast<decltype(a.x)>(x);
    a.y = reinterpret_cast<decltype(a.y)>(y);
    kernel(weights, e, a, threads);
  }};
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Kernels* k : usable()) names.emplace_back(k->name);
    return names;
  });
  m.def("isa", [] { return std::string(chosen->name); });
  m.def("use", [](const std::string& name) {
    for (const Kernels* k : usable())
      if (name == k->name) {
        chosen = k;
        return true;
      }
    return false;
  });
  m.def("share_team", [](uintptr_t run, uintptr_t thread) {
    share_team(Team{reinterpret_cast<decltype(Team::run)>(run), reinterpret_cast<decltype(Team::thread)>(thread)});
  });
  m.def("strip", [](int64_t height) { return chosen->strip(height); });
  m.def("reach", [](int64_t height) { return chosen->reach(height); });
  m.def("visit", [](int64_t height) { return chosen->visit(height); });
  nb::class_<Call>(m, "Call").def("__call__", [](const Call& call, uintptr_t x, uintptr_t y, uintptr_t residual) {
    nb::gil_scoped_release free;
    call.run(x, y, residual);
  });
  m.def("halves", [] { return chosen->block_half != nullptr; });
  m.def("dots", [] { return chosen->block_dots != nullptr; });
  m.def("spreads", [] { return chosen->spreads; });
  m.def("block_linear", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    return call(chosen->block_linear, block_weights(w), epilogue<Epilogue>(e), tokens<Tokens>(a), threads);
  });
  m.def("block_half", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    const auto weights = block_weights(w);
    demand(halves(weights) && chosen->block_half != nullptr);
    return call(chosen->block_half, weights, epilogue<HalfEpilogue>(e), tokens<HalfTokens>(a), threads);
  });
  m.def("block_half_conv", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    const auto weights = block_weights(w);
    const auto given = images<HalfImages>(a);
    demand(halves(weights) && chosen->block_half_conv != nullptr && given.channels % weights.depth == 0);
    return call(chosen->block_half_conv, weights, epilogue<HalfEpilogue>(e), given, threads);
  });
  m.def("int8_linear", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    const auto weights = dot_weights(w);
    return call(chosen->block_dots, weights, epilogue<Epilogue>(e), tokens<Tokens>(a), threads);
  });
  m.def("int8_half", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    const auto weights = dot_weights(w);
    return call(chosen->block_dots_half, weights, epilogue<HalfEpilogue>(e), tokens<HalfTokens>(a), threads);
  });
  m.def("column_linear", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    return call(chosen->column_linear, column_weights(w), epilogue<Epilogue>(e), tokens<Tokens>(a), threads);
  });
  m.def("bits_linear", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    return call(chosen->bits_linear, bit_weights(w), epilogue<Epilogue>(e), tokens<Tokens>(a), threads);
  });
  m.def("block_conv", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    return call(chosen->block_conv, block_weights(w), epilogue<Epilogue>(e), images<Images>(a), threads);
  });
  m.def("column_conv", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    return call(chosen->column_conv, column_weights(w), epilogue<Epilogue>(e), images<Images>(a), threads);
  });
}
