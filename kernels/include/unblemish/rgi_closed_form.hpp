// The RGI objective minimised over the mask, per mask element. Source: seed 000, eq. 3, section 3.3.
//
// For the squared residual r2 of the element (summed over the channels that share it)
//     min over M of (1 - M)^2 r2 + lam |M|   is reached at   M = max(0, 1 - lam / (2 r2)).
// With keep = 1 - M = min(1, lam / (2 r2)):
//     profile loss  r2                     where 2 r2 <= lam
//                   lam (1 - keep / 2)     elsewhere, since lam^2 / (4 r2) = lam keep / 2
//     cotangent     2 keep^2 r             (the mask is optimal, so its own derivative drops out)
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// The order of the comparison decides three edges: r2 = 0 keeps all, lam = 0 never divides by zero,
// and NaN goes to the division and stays NaN. r2 may overflow: keep is then 0, as it should be.
UNBLEMISH_HD float rgi_keep(float r2, float lam) {
  const float twice = r2 + r2;
  return twice <= lam ? 1.0f : lam / twice;
}

UNBLEMISH_HD float rgi_profile_loss(float r2, float keep, float lam) {
  return r2 + r2 <= lam ? r2 : lam * (1.0f - 0.5f * keep);
}

// keep (keep r), not keep^2 r: keep^2 leaves the range of a float long before the product does.
UNBLEMISH_HD float rgi_cotangent(float r, float keep, float twice_scale) {
  return twice_scale * (keep * (keep * r));
}

// 0 for a finite residual, NaN otherwise: the profile loss is bounded by lam and would hide it.
UNBLEMISH_HD float rgi_poison(float r) { return 0.0f * r; }

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
