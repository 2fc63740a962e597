// Binding of the greedy k-centre choice; see `k_centre` in Python.
#include <limits>

#include "bindings.hpp"
#include "k_centre.hpp"

namespace unblemish::cpu {

void bind_k_centre(nb::module_& module) {
  using namespace nb::literals;
  using Rows = Array<const float, nb::ndim<2>>;
  using Numbers = Array<std::int64_t, nb::ndim<1>>;
  nb::class_<KCentre>(module, "KCentre")
      .def(
          "__init__",
          [](KCentre* self, Engine& engine, Rows rows, std::size_t first, std::size_t pool) {
            require(rows.size() > 0 && first < rows.shape(0) && pool > 0);
            require(rows.shape(0) <= static_cast<std::size_t>(std::numeric_limits<int>::max()));
            new (self) KCentre(engine, rows.data(), rows.shape(0), rows.shape(1), first, pool);
          },
          "engine"_a, "rows"_a.noconvert(), "first"_a, "pool"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def(
          "choose",
          [](KCentre& self, Numbers out) {
            require(out.size() <= self.remaining());
            self.choose(out.data(), out.size());
          },
          "out"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace unblemish::cpu
