// A float and its bits.
#pragma once

#include <string.h>

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

UNBLEMISH_HD unsigned bits_of(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

UNBLEMISH_HD float float_of(unsigned bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
