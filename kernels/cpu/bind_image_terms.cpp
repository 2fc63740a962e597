// Python bindings of the terms and the update of F2PAD; see module.cpp.
#include "bindings.hpp"

namespace unblemish::cpu {

void bind_image_terms(nb::class_<Engine>&) {}

}  // namespace unblemish::cpu
