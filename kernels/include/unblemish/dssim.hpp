// Structural dissimilarity (1 - SSIM) / 2 of one pixel and its slopes. Source: Wang et al. 2004, eqs. 6, 13.
//
// With d = x - g, u = (x + g) / 2 and the window's means written [.]:
//     B1 = [x]^2 + [g]^2 + C1 = 2 [u]^2 + [d]^2 / 2 + C1,     B2 = var x + var g + C2 = 2 var u + var d / 2 + C2,
//     1 - SSIM = a + b - a b,     a = [d]^2 / B1,     b = var d / B2.
// No term cancels where x and g are alike, as those of the usual form do in float32. Four windowed means are
// needed: d, u, d^2 and u^2, u less an `anchor` near it, so that var u = [u^2] - [u]^2 keeps its digits.
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {

struct DssimConstants {
  float range;  // data range R
  float c1;     // (0.01 R)^2
  float c2;     // (0.03 R)^2
};

inline DssimConstants dssim_constants(double range) {
  return {static_cast<float>(range), static_cast<float>(1e-4 * range * range), static_cast<float>(9e-4 * range * range)};
}

// weights[0 .. 2 radius]: a Gaussian of unit sum.
inline void gaussian_window(int radius, double sigma, float* weights) {
  double sum = 0.0;
  for (int pass = 0; pass < 2; ++pass)
    for (int k = -radius; k <= radius; ++k) {
      const double ratio = k / sigma, weight = exp(-0.5 * ratio * ratio);
      if (pass == 0)
        sum += weight;
      else
        weights[k + radius] = static_cast<float>(weight / sum);
    }
}

inline namespace UNBLEMISH_ISA {

// The windowed means, or the slopes by them brought back to a pixel.
struct DssimMeans {
  float d, u, dd, uu;
};

// What is taken from u around a pixel: its own, where that is a number of the data's size.
UNBLEMISH_HD float dssim_anchor(float x, float g, float range) {
  const float u = 0.5f * (x + g);
  return fabsf(u) <= 8.0f * range ? u : 0.0f;
}

UNBLEMISH_HD DssimMeans dssim_products(float x, float g, float anchor) {
  const float d = x - g, u = 0.5f * (x + g) - anchor;
  return {d, u, d * d, u * u};
}

// Rounding may leave a variance below 0; NaN passes.
UNBLEMISH_HD float dssim_variance(float square, float mean) {
  const float variance = square - mean * mean;
  return variance < 0.0f ? 0.0f : variance;
}

// (1 - SSIM) / 2, and its slopes by the means; that by u holds for those of (u - anchor) and (u - anchor)^2.
struct DssimTerm {
  float value, d, u, dd, uu;
};

UNBLEMISH_HD DssimTerm dssim_term(DssimMeans m, float anchor, DssimConstants c) {
  const float level = m.u + anchor, square = m.d * m.d;
  const float variance = dssim_variance(m.dd, m.d);
  const float inverse_b1 = 1.0f / (2.0f * (level * level) + 0.5f * square + c.c1);
  const float inverse_b2 = 1.0f / (2.0f * dssim_variance(m.uu, m.u) + 0.5f * variance + c.c2);
  const float a = square * inverse_b1, b = variance * inverse_b2;
  const float by_dd = 0.5f * (1.0f - a) * (1.0f - 0.5f * b) * inverse_b2;
  const float by_uu = (a - 1.0f) * b * inverse_b2;
  return {0.5f * (a + b - a * b),
          m.d * (0.5f * (1.0f - b) * (2.0f - a) * inverse_b1 - 2.0f * by_dd),
          -2.0f * ((1.0f - b) * a * level * inverse_b1 + m.u * by_uu),
          by_dd,
          by_uu};
}

struct DssimGradient {
  float x, g;
};

// From the slopes brought back to the pixel: the window's transpose, which is the window itself, since the
// image is continued by its mirror image.
UNBLEMISH_HD DssimGradient dssim_gradient(DssimMeans back, DssimMeans here, float factor) {
  const float by_d = factor * (back.d + 2.0f * here.d * back.dd);
  const float half = factor * (0.5f * back.u + here.u * back.uu);
  return {half + by_d, half - by_d};
}

// Index into n elements continued by their mirror image: c b a | a b c | c b a.
UNBLEMISH_HD long long mirrored(long long i, long long n) {
  if (i >= 0 && i < n) return i;
  const long long turn = i % (2 * n), from = turn < 0 ? turn + 2 * n : turn;
  return from < n ? from : 2 * n - 1 - from;
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
