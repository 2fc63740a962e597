// One element of a descent on an image, drawn to where it started by lam |x - start|.
// Source: seed 002, eqs. 4, 5, 7, 8; the proximal step: Beck and Teboulle 2009, eq. 1.4.
#pragma once

#include "unblemish/adam.hpp"
#include "unblemish/residual.hpp"

namespace unblemish {

// Of one batch item. adam.step_size is that of a rate of 1.
struct EnergyStep {
  float lam;
  float rate;
  AdamStep adam;
};

inline namespace UNBLEMISH_ISA {

// A step to take, and how far the l1 term then draws towards the start.
struct EnergyMove {
  float step;
  float threshold;
};

// The slope that is descended: with the l1 term's own, unless the proximal step takes care of it.
UNBLEMISH_HD float energy_slope(float smooth, float x, float start, float lam, bool proximal) {
  return proximal ? smooth : smooth + l1_cotangent(x - start, 1.0f, lam);
}

UNBLEMISH_HD EnergyMove energy_plain(float slope, float weight, const EnergyStep& s) {
  const float rate = s.rate * weight;
  return {rate * slope, rate * s.lam};
}

// `weigh_step`: the weight multiplies Adam's step, otherwise the slope that its moments are of.
UNBLEMISH_HD EnergyMove energy_adam(float& m, float& v, float slope, float weight, const EnergyStep& s,
                                    bool weigh_step) {
  const float denominator = adam_denominator(m, v, weigh_step ? slope : weight * slope, s.adam);
  const float rate = s.rate / denominator;
  const float step = (s.rate * s.adam.step_size) * (m / denominator);
  return {weigh_step ? weight * step : step, rate * weight * s.lam};
}

// argmin_q (q - z)^2 / 2 + threshold |q - start|; NaN and infinity pass.
UNBLEMISH_HD float shrink_towards(float z, float start, float threshold) {
  const float d = z - start;
  const float near = d - d == 0.0f ? start : d;
  return d > threshold ? z - threshold : (d < -threshold ? z + threshold : near);
}

UNBLEMISH_HD float energy_place(float x, float start, EnergyMove move, const EnergyStep& s, bool proximal) {
  const float z = x - move.step;
  return clamp_to_box(proximal ? shrink_towards(z, start, move.threshold) : z, s.adam.lower, s.adam.upper);
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
