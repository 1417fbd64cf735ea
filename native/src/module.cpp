// The Python module: kernels by name, pointers as whole numbers. openwork/kernels checks every argument first.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace nb = nanobind;
using namespace openwork;

namespace {

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__) && !defined(OW_ONLY_PORTABLE)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512::kernels);
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
  demand(found.height > 0 && found.height % chosen->width == 0 && found.depth > 0);
  return found;
}

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

Epilogue epilogue(nb::tuple t) {
  return {at<const float>(nb::cast<uintptr_t>(t[0])), at<const float>(nb::cast<uintptr_t>(t[1])), nb::cast<int>(t[2])};
}

Tokens tokens(nb::tuple t) {
  return {at<const float>(nb::cast<uintptr_t>(t[0])), at<float>(nb::cast<uintptr_t>(t[1])), nb::cast<int64_t>(t[2]),
          nb::cast<int64_t>(t[3]), nb::cast<int64_t>(t[4]), nb::cast<int64_t>(t[5])};
}

Images images(nb::tuple t) {
  Images a{};
  a.x = at<const float>(nb::cast<uintptr_t>(t[0]));
  a.y = at<float>(nb::cast<uintptr_t>(t[1]));
  int64_t* numbers[] = {&a.batch,    &a.channels, &a.height, &a.width, &a.kernel_h,   &a.kernel_w,   &a.stride_h,
                        &a.stride_w, &a.pad_h,    &a.pad_w,  &a.dilation_h, &a.dilation_w, &a.out_h, &a.out_w};
  int i = 2;
  for (int64_t* n : numbers) *n = nb::cast<int64_t>(t[i++]);
  a.channels_last = nb::cast<bool>(t[i]);
  return a;
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
  m.def("strip", [](int64_t height) { return chosen->strip(height); });
  m.def("reach", [](int64_t height) { return chosen->reach(height); });
  m.def("visit", [](int64_t height) { return chosen->visit(height); });
  m.def("block_linear", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    const auto weights = block_weights(w);
    const auto end = epilogue(e);
    const auto given = tokens(a);
    nb::gil_scoped_release free;
    chosen->block_linear(weights, end, given, threads);
  });
  m.def("column_linear", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    const auto weights = column_weights(w);
    const auto end = epilogue(e);
    const auto given = tokens(a);
    nb::gil_scoped_release free;
    chosen->column_linear(weights, end, given, threads);
  });
  m.def("spreads", [] { return chosen->spreads; });
  m.def("bits_linear", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    const auto weights = bit_weights(w);
    const auto end = epilogue(e);
    const auto given = tokens(a);
    nb::gil_scoped_release free;
    chosen->bits_linear(weights, end, given, threads);
  });
  m.def("block_conv", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    const auto weights = block_weights(w);
    const auto end = epilogue(e);
    const auto given = images(a);
    nb::gil_scoped_release free;
    chosen->block_conv(weights, end, given, threads);
  });
  m.def("column_conv", [](nb::tuple w, nb::tuple e, nb::tuple a, int threads) {
    const auto weights = column_weights(w);
    const auto end = epilogue(e);
    const auto given = images(a);
    nb::gil_scoped_release free;
    chosen->column_conv(weights, end, given, threads);
  });
}
