// What happens to a finished sum: activation functions on whole vectors, and the way out.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace openwork::OW_ISA {

// exp with a relative error below 2e-7: 2^n times a polynomial of the remainder; infinite above 88.
OW_INLINE vf exp_(vf given) {
  const vf x = min(max(given, splat(-87.0f)), splat(88.0f));
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  vf n = fma(x, splat(1.44269504f), magic) - magic;
  vf r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  vf p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + splat(1.0f));
  vi e = (__builtin_convertvector(n, vi) + 127) << 23;
  return given > splat(88.0f) ? splat(__builtin_inff()) : p * reinterpret_cast<vf>(e);
}

// The error function: x times a quotient of polynomials of x^2, fitted on |x| < 3.92 (error below 3e-7), and one beyond.
OW_INLINE vf erf_(vf x) {
  const vf end = splat(3.92f), one = splat(1.0f), s = x * x;
  vf p = splat(2.0636407e-06f);
  p = fma(p, s, splat(2.8391150e-04f));
  p = fma(p, s, splat(3.7102061e-03f));
  p = fma(p, s, splat(5.2577276e-02f));
  p = fma(p, s, splat(1.8907794e-01f));
  p = fma(p, s, splat(1.1283791f));
  vf q = splat(3.8181934e-05f);
  q = fma(q, s, splat(1.1496432e-03f));
  q = fma(q, s, splat(1.4857528e-02f));
  q = fma(q, s, splat(1.1356392e-01f));
  q = fma(q, s, splat(5.0089890e-01f));
  q = fma(q, s, one);
  return x >= end ? one : x <= -end ? -one : x * p / q;  // a NaN stays one
}

OW_INLINE vf sigmoid_(vf x) { return splat(1.0f) / (splat(1.0f) + exp_(-x)); }

OW_INLINE vf activate(vf x, int act) {
  switch (act) {
    case kRelu:
      return x < splat(0.0f) ? splat(0.0f) : x;  // a NaN stays one
    case kGelu:
      return splat(0.5f) * x * (splat(1.0f) + erf_(x * splat(0.70710678f)));
    case kGeluTanh: {
      vf u = splat(0.7978845608f) * fma(splat(0.044715f) * x * x, x, x);
      return x * sigmoid_(u + u);
    }
    case kSilu:
      return x * sigmoid_(x);
    case kRelu6:
      return x < splat(0.0f) ? splat(0.0f) : x > splat(6.0f) ? splat(6.0f) : x;
    default:
      return x;
  }
}

// The end of up to W sums of one token: outputs [first, first + count) of its row of y.
OW_INLINE void finish(vf sum, const float* scales, const Epilogue& e, int64_t first, int64_t count, int64_t stride,
                      int64_t token, float* y) {
  const int64_t at = token * stride + first;
  if (scales != nullptr) sum *= load_some(scales + first, count);
  if (e.bias != nullptr) sum += load_some(e.bias + first, count);
  if (e.residual != nullptr) sum += load_some(e.residual + at, count);
  store_some(y + at, activate(sum, e.act), count);
}

}  // namespace openwork::OW_ISA
