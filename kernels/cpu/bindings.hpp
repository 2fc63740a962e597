// What each family of operations adds to the Engine of the module.
#pragma once

#include "arrays.hpp"
#include "drivers.hpp"

namespace unblemish::cpu {

void bind_image_terms(nb::class_<Engine>& engine);
void bind_feature_terms(nb::class_<Engine>& engine);
void bind_energy_terms(nb::class_<Engine>& engine);
void bind_k_centre(nb::module_& module);

}  // namespace unblemish::cpu
