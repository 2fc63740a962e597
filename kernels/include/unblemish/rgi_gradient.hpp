// The RGI objective and its derivatives with a free mask. Source: seed 000, eq. 3.
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// ((1 - mask) r)^2, in double against overflow.
UNBLEMISH_HD double rgi_fit(float r, float keep) {
  const double kept = static_cast<double>(keep) * r;
  return kept * kept;
}

UNBLEMISH_HD double rgi_sparsity(float mask, float lam) {
  return static_cast<double>(lam) * fabs(static_cast<double>(mask));
}

UNBLEMISH_HD float rgi_fit_cotangent(float r, float keep, float twice_scale) {
  return twice_scale * (keep * (keep * r));
}

// scale (lam sign(mask) - 2 keep r2), sign(0) = 0.
UNBLEMISH_HD float rgi_mask_gradient(float mask, float r2, float lam, float scale) {
  const float sign = mask > 0.0f ? 1.0f : (mask < 0.0f ? -1.0f : mask);
  return scale * (lam * sign - 2.0f * ((1.0f - mask) * r2));
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
