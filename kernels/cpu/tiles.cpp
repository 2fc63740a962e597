// Compiled once per instruction set (UNBLEMISH_ISA). Only bodies from include/unblemish and C's math.h
// may be used here: a function template of the standard library would be shared between the copies.
#include "tiles.hpp"

#include "unblemish/norms.hpp"
#include "unblemish/project_ball.hpp"
#include "unblemish/residual.hpp"
#include "unblemish/rgi_closed_form.hpp"
#include "unblemish/rgi_gradient.hpp"

#define UNBLEMISH_TEXT_(x) #x
#define UNBLEMISH_TEXT(x) UNBLEMISH_TEXT_(x)

namespace unblemish::cpu::UNBLEMISH_ISA {
namespace {

using std::size_t;

// Elements handled at once where channels share a mask: rows of x and g and two buffers fit in L1.
constexpr size_t kStrip = 512;

size_t strip(size_t start, size_t count) { return count - start < kStrip ? count - start : kStrip; }

// r2[i] += sum over the channels of (g - x)^2; returns 0, or NaN where a residual is not finite.
float sum_squares(const float* x, const float* g, Extent e, float* UNBLEMISH_RESTRICT r2) {
  float poison = 0.0f;
  for (size_t c = 0; c < e.channels; ++c) {
    const float* UNBLEMISH_RESTRICT xc = x + c * e.stride;
    const float* UNBLEMISH_RESTRICT gc = g + c * e.stride;
#pragma omp simd reduction(+ : poison)
    for (size_t i = 0; i < e.count; ++i) {
      const float r = gc[i] - xc[i];
      r2[i] += r * r;
      poison += rgi_poison(r);
    }
  }
  return poison;
}

double closed_form_strip(const ClosedFormTile& t, Extent e) {
  alignas(64) float r2[kStrip] = {};
  alignas(64) float keep[kStrip];
  const float lam = t.lam;
  double sum = sum_squares(t.x, t.g, e, r2);
  float* UNBLEMISH_RESTRICT mask = t.mask;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < e.count; ++i) {
    const float k = rgi_keep(r2[i], lam);
    keep[i] = k;
    mask[i] = 1.0f - k;
    sum += rgi_profile_loss(r2[i], k, lam);
  }
  const float twice_scale = 2.0f * t.scale;
  for (size_t c = 0; c < e.channels; ++c) {
    const float* UNBLEMISH_RESTRICT x = t.x + c * e.stride;
    const float* UNBLEMISH_RESTRICT g = t.g + c * e.stride;
    float* UNBLEMISH_RESTRICT cotangent = t.cotangent + c * e.stride;
#pragma omp simd
    for (size_t i = 0; i < e.count; ++i) cotangent[i] = rgi_cotangent(g[i] - x[i], keep[i], twice_scale);
  }
  return sum;
}

// The channels of a pixel held in registers: nothing is read twice.
template <size_t Channels>
double closed_form_fused(const ClosedFormTile& t, Extent e) {
  const float lam = t.lam;
  const float twice_scale = 2.0f * t.scale;
  const float* UNBLEMISH_RESTRICT x = t.x;
  const float* UNBLEMISH_RESTRICT g = t.g;
  float* UNBLEMISH_RESTRICT mask = t.mask;
  float* UNBLEMISH_RESTRICT cotangent = t.cotangent;
  double sum = 0.0;
  float poison = 0.0f;
#pragma omp simd reduction(+ : sum, poison)
  for (size_t i = 0; i < e.count; ++i) {
    float r[Channels];
    float r2 = 0.0f;
    for (size_t c = 0; c < Channels; ++c) {
      r[c] = g[c * e.stride + i] - x[c * e.stride + i];
      r2 += r[c] * r[c];
      poison += rgi_poison(r[c]);
    }
    const float keep = rgi_keep(r2, lam);
    mask[i] = 1.0f - keep;
    sum += rgi_profile_loss(r2, keep, lam);
    for (size_t c = 0; c < Channels; ++c)
      cotangent[c * e.stride + i] = rgi_cotangent(r[c], keep, twice_scale);
  }
  return sum + poison;
}

double rgi_closed_form(const ClosedFormTile& t, Extent e) {
  if (e.channels == 1) return closed_form_fused<1>(t, e);
  if (e.channels == 3) return closed_form_fused<3>(t, e);
  double sum = 0.0;
  for (size_t s = 0; s < e.count; s += kStrip) {
    const ClosedFormTile part{t.x + s, t.g + s, t.lam, t.scale, t.mask + s, t.cotangent + s};
    sum += closed_form_strip(part, {e.channels, e.stride, strip(s, e.count)});
  }
  return sum;
}

double gradient_strip(const GradientTile& t, Extent e) {
  alignas(64) float r2[kStrip] = {};
  const float* UNBLEMISH_RESTRICT mask = t.mask;
  const float twice_scale = 2.0f * t.scale;
  double sum = 0.0;
  for (size_t c = 0; c < e.channels; ++c) {
    const float* UNBLEMISH_RESTRICT x = t.x + c * e.stride;
    const float* UNBLEMISH_RESTRICT g = t.g + c * e.stride;
    float* UNBLEMISH_RESTRICT cotangent = t.cotangent + c * e.stride;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < e.count; ++i) {
      const float r = g[i] - x[i];
      const float keep = 1.0f - mask[i];
      r2[i] += r * r;
      sum += rgi_fit(r, keep);
      cotangent[i] = rgi_fit_cotangent(r, keep, twice_scale);
    }
  }
  float* UNBLEMISH_RESTRICT mask_gradient = t.mask_gradient;
  const float lam = t.lam;
  const float scale = t.scale;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < e.count; ++i) {
    sum += rgi_sparsity(mask[i], lam);
    mask_gradient[i] = rgi_mask_gradient(mask[i], r2[i], lam, scale);
  }
  return sum;
}

template <size_t Channels>
double gradient_fused(const GradientTile& t, Extent e) {
  const float lam = t.lam;
  const float scale = t.scale;
  const float* UNBLEMISH_RESTRICT x = t.x;
  const float* UNBLEMISH_RESTRICT g = t.g;
  const float* UNBLEMISH_RESTRICT mask = t.mask;
  float* UNBLEMISH_RESTRICT cotangent = t.cotangent;
  float* UNBLEMISH_RESTRICT mask_gradient = t.mask_gradient;
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < e.count; ++i) {
    const float keep = 1.0f - mask[i];
    float r2 = 0.0f;
    double fit = rgi_sparsity(mask[i], lam);
    for (size_t c = 0; c < Channels; ++c) {
      const float r = g[c * e.stride + i] - x[c * e.stride + i];
      r2 += r * r;
      fit += rgi_fit(r, keep);
      cotangent[c * e.stride + i] = rgi_fit_cotangent(r, keep, 2.0f * scale);
    }
    sum += fit;
    mask_gradient[i] = rgi_mask_gradient(mask[i], r2, lam, scale);
  }
  return sum;
}

double rgi_gradient(const GradientTile& t, Extent e) {
  if (e.channels == 1) return gradient_fused<1>(t, e);
  if (e.channels == 3) return gradient_fused<3>(t, e);
  double sum = 0.0;
  for (size_t s = 0; s < e.count; s += kStrip) {
    const GradientTile part{t.x + s,         t.g + s, t.mask + s, t.lam, t.scale, t.cotangent + s,
                            t.mask_gradient + s};
    sum += gradient_strip(part, {e.channels, e.stride, strip(s, e.count)});
  }
  return sum;
}

struct L2 {
  static double value(float r, float w) { return l2_value(r, w); }
  static float cotangent(float r, float w, float scale) { return l2_cotangent(r, w, 2.0f * scale); }
};

struct L1 {
  static double value(float r, float w) { return l1_value(r, w); }
  static float cotangent(float r, float w, float scale) { return l1_cotangent(r, w, scale); }
};

template <class Loss>
double residual(const ResidualTile& t, Extent e) {
  const float scale = t.scale;
  double sum = 0.0;
  for (size_t c = 0; c < e.channels; ++c) {
    const float* UNBLEMISH_RESTRICT x = t.x + c * e.stride;
    const float* UNBLEMISH_RESTRICT g = t.g + c * e.stride;
    float* UNBLEMISH_RESTRICT cotangent = t.cotangent + c * e.stride;
    if (t.weight == nullptr) {
#pragma omp simd reduction(+ : sum)
      for (size_t i = 0; i < e.count; ++i) {
        const float r = g[i] - x[i];
        sum += Loss::value(r, 1.0f);
        cotangent[i] = Loss::cotangent(r, 1.0f, scale);
      }
    } else {
      const float* UNBLEMISH_RESTRICT weight = t.weight;
#pragma omp simd reduction(+ : sum)
      for (size_t i = 0; i < e.count; ++i) {
        const float r = g[i] - x[i];
        sum += Loss::value(r, weight[i]);
        cotangent[i] = Loss::cotangent(r, weight[i], scale);
      }
    }
  }
  return sum;
}

void adam(const AdamTile& t, const AdamStep& step, size_t count) {
  float* UNBLEMISH_RESTRICT p = t.p;
  const float* UNBLEMISH_RESTRICT grad = t.grad;
  float* UNBLEMISH_RESTRICT m = t.m;
  float* UNBLEMISH_RESTRICT v = t.v;
  const AdamStep s = step;
#pragma omp simd
  for (size_t i = 0; i < count; ++i) adam_update(p[i], m[i], v[i], grad[i], s);
}

double sum_squared_distance(const float* p, const float* centre, size_t count) {
  double sum = 0.0;
  if (centre == nullptr) {
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; ++i) sum += squared_distance(p[i], 0.0f);
  } else {
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; ++i) sum += squared_distance(p[i], centre[i]);
  }
  return sum;
}

void move_towards_centre(float* UNBLEMISH_RESTRICT p, const float* UNBLEMISH_RESTRICT centre, double factor,
                         size_t count) {
  if (centre == nullptr) {
#pragma omp simd
    for (size_t i = 0; i < count; ++i) p[i] = towards_centre(p[i], 0.0f, factor);
  } else {
#pragma omp simd
    for (size_t i = 0; i < count; ++i) p[i] = towards_centre(p[i], centre[i], factor);
  }
}

Norms norms(const float* x, size_t count) {
  double squared = 0.0;
  float largest = 0.0f;
#pragma omp simd reduction(+ : squared) reduction(max : largest)
  for (size_t i = 0; i < count; ++i) {
    squared += square(x[i]);
    largest = larger(largest, magnitude(x[i]));
  }
  return {squared, largest};
}

bool all_finite(const float* x, size_t count) {
  unsigned bad = 0;
#pragma omp simd reduction(| : bad)
  for (size_t i = 0; i < count; ++i) bad |= not_finite(x[i]);
  return bad == 0;
}

}  // namespace

extern const Tiles tiles;
const Tiles tiles{UNBLEMISH_TEXT(UNBLEMISH_ISA),
                  rgi_closed_form,
                  rgi_gradient,
                  residual<L2>,
                  residual<L1>,
                  adam,
                  sum_squared_distance,
                  move_towards_centre,
                  norms,
                  all_finite};

}  // namespace unblemish::cpu::UNBLEMISH_ISA
