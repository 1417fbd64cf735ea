// What happens to a finished sum: activation functions on whole vectors.
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

// The error function: a Taylor series below 1, a rational fit of its complement beyond.
OW_INLINE vf erf_(vf x) {
  const vf zero = splat(0.0f), one = splat(1.0f);
  vf a = x < zero ? -x : x;
  // |x| < 1: odd polynomial (Taylor to x^21, error below 1e-7 there)
  vf s = a * a;
  vf t = splat(1.3122532963802806e-08f);
  t = fma(t, s, splat(-1.4503852223150468e-07f));
  t = fma(t, s, splat(1.4589169000933706e-06f));
  t = fma(t, s, splat(-1.3227513227513228e-05f));
  t = fma(t, s, splat(1.0683760683760684e-04f));
  t = fma(t, s, splat(-7.5757575757575758e-04f));
  t = fma(t, s, splat(4.6296296296296294e-03f));
  t = fma(t, s, splat(-2.3809523809523808e-02f));
  t = fma(t, s, splat(0.1f));
  t = fma(t, s, splat(-0.33333333333333333f));
  t = fma(t, s, one);
  vf small = splat(1.1283791670955126f) * a * t;
  // |x| >= 1: 1 - exp(-x^2) times a polynomial of 1 / (1 + p x) (Numerical Recipes' erfc, error below 1.2e-7)
  vf u = one / fma(splat(0.5f), a, one);
  vf q = splat(0.17087277f);
  q = fma(q, u, splat(-0.82215223f));
  q = fma(q, u, splat(1.48851587f));
  q = fma(q, u, splat(-1.13520398f));
  q = fma(q, u, splat(0.27886807f));
  q = fma(q, u, splat(-0.18628806f));
  q = fma(q, u, splat(0.09678418f));
  q = fma(q, u, splat(0.37409196f));
  q = fma(q, u, splat(1.00002368f));
  q = fma(q, u, splat(-1.26551223f));
  vf large = one - u * exp_(q - s);
  vf y = a < one ? small : large;
  return x < zero ? -y : y;
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

}  // namespace openwork::OW_ISA
