// IEEE half precision as 16 bits, rounded to nearest even; for compilers and processors without it.
#pragma once

#include "unblemish/bits.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// A half that is finite times 2^-112 has its own exponent and digits moved up by 13 bits.
UNBLEMISH_HD float float_of_half(unsigned short half) {
  const unsigned bits = half;
  const unsigned magnitude = (bits & 0x7fffu) << 13;
  const unsigned special = magnitude | 0x7f800000u;  // infinity and NaN
  const unsigned finite = bits_of(float_of(magnitude) * 5.19229686e33f);  // 2^112, exact
  return float_of((magnitude >= 0x0f800000u ? special : finite) | (bits & 0x8000u) << 16);
}

// Below 2^-14 the sum with 1/2 rounds to the last digit of a half; above, the 13 digits cut are rounded.
UNBLEMISH_HD unsigned short half_of_float(float x) {
  const unsigned bits = bits_of(x);
  const unsigned magnitude = bits & 0x7fffffffu;
  const unsigned small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const unsigned rounded = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  const unsigned usual = magnitude < 0x38800000u ? small : rounded;
  const unsigned finite = magnitude >= 0x477ff000u ? 0x7c00u : usual;  // 65520 and above: infinity
  return static_cast<unsigned short>((magnitude > 0x7f800000u ? 0x7e00u : finite) | (bits >> 16 & 0x8000u));
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
