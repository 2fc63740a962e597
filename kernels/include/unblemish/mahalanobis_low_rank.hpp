// Squared Mahalanobis distance by an inverse covariance p (I - B B^T). Source: seed 003, eq. 7.
//
// With rest = d - B (B^T d): s = p d . rest, d s / d f = 2 p rest.
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

UNBLEMISH_HD double rest_value(float d, float rest) { return static_cast<double>(d) * rest; }

UNBLEMISH_HD float rest_cotangent(float rest, float inverse_variance) { return 2.0f * (inverse_variance * rest); }

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
