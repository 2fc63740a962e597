// Python bindings of the CPU kernels: zero-copy NumPy arrays, GIL released while they run.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bindings.hpp"

using namespace nb::literals;

namespace unblemish::cpu {
namespace {

ImageShape shape_of(const Image& x) { return {x.shape(0), x.shape(1), x.shape(2) * x.shape(3)}; }

// Whether `a` is one row shared by the channels of x; refuses what is neither that nor x's shape.
template <class A>
bool is_shared(const A& a, const Image& x) {
  require(a.shape(0) == x.shape(0) && a.shape(2) == x.shape(2) && a.shape(3) == x.shape(3));
  require(a.shape(1) == 1 || a.shape(1) == x.shape(1));
  return a.shape(1) == 1;
}

void bind_rgi_closed_form(Engine& engine, Image x, Image g, PerItem lam, PerItem scale, ImageOut mask,
                          ImageOut cotangent, PerItemOut objective) {
  require_items(x, {lam.size(), scale.size(), objective.size()});
  require(same_shape(x, g) && same_shape(x, cotangent));
  const bool shared = is_shared(mask, x);
  require_apart({span(mask), span(cotangent), span(objective), span(x), span(g), span(lam), span(scale)}, 3);
  rgi_closed_form(engine, {x.data(), g.data(), lam.data(), scale.data(), objective.data()}, shape_of(x), shared,
                  mask.data(), cotangent.data());
}

void bind_rgi_gradient(Engine& engine, Image x, Image g, Image mask, PerItem lam, PerItem scale, ImageOut cotangent,
                       ImageOut mask_gradient, PerItemOut objective) {
  require_items(x, {lam.size(), scale.size(), objective.size()});
  require(same_shape(x, g) && same_shape(x, cotangent) && same_shape(mask, mask_gradient));
  const bool shared = is_shared(mask, x);
  require_apart({span(cotangent), span(mask_gradient), span(objective), span(x), span(g), span(mask), span(lam),
                 span(scale)},
                3);
  rgi_gradient(engine, {x.data(), g.data(), lam.data(), scale.data(), objective.data()}, shape_of(x), shared,
               mask.data(), cotangent.data(), mask_gradient.data());
}

template <Loss loss>
void bind_residual(Engine& engine, Image x, Image g, PerItem scale, ImageOut cotangent, PerItemOut objective,
                   std::optional<Image> weight) {
  require_items(x, {scale.size(), objective.size()});
  require(same_shape(x, g) && same_shape(x, cotangent));
  Weight kind = Weight::none;
  if (weight) kind = is_shared(*weight, x) ? Weight::shared : Weight::element;
  const Span weights = weight ? span(*weight) : Span{nullptr, nullptr};
  require_apart({span(cotangent), span(objective), span(x), span(g), span(scale), weights}, 2);
  residual(engine, loss,
           {x.data(), g.data(), scale.data(), weight ? weight->data() : nullptr, cotangent.data(),
            objective.data()},
           shape_of(x), kind);
}

void bind_adam(Engine& engine, Array<float> p, Array<const float> grad, Array<float> m, Array<float> v, long long step,
               double lr, double beta1, double beta2, double eps, double lower, double upper) {
  require(same_shape(p, grad) && same_shape(p, m) && same_shape(p, v));
  require(step >= 1 && lower <= upper);
  require_apart({span(p), span(m), span(v), span(grad)}, 3);
  adam(engine, {p.data(), grad.data(), m.data(), v.data()}, adam_step(step, lr, beta1, beta2, eps, lower, upper),
       p.size());
}

void bind_project_ball(Engine& engine, Array<float, nb::ndim<2>> p, std::optional<Array<const float, nb::ndim<2>>> centre,
                       PerItem radius) {
  require(p.size() > 0 && radius.size() == p.shape(0) && (!centre || same_shape(p, *centre)));
  for (std::size_t b = 0; b < radius.size(); ++b) require(radius.data()[b] >= 0.0f);
  const Span centres = centre ? span(*centre) : Span{nullptr, nullptr};
  require_apart({span(p), span(radius), centres}, 1);
  project_ball(engine, p.data(), centre ? centre->data() : nullptr, radius.data(), p.shape(0), p.shape(1));
}

void bind_norms(Engine& engine, Array<const float> x, PerItemOut squared, PerItemOut largest) {
  require(x.ndim() >= 1 && x.size() > 0);
  require(squared.size() == x.shape(0) && largest.size() == x.shape(0));
  require_apart({span(squared), span(largest), span(x)}, 2);
  norms(engine, x.data(), x.shape(0), x.size() / x.shape(0), squared.data(), largest.data());
}

bool bind_all_finite(Engine& engine, Array<const float> x) { return all_finite(engine, x.data(), x.size()); }

}  // namespace
}  // namespace unblemish::cpu

NB_MODULE(_cpu, module) {
  using namespace unblemish::cpu;
  module.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const Tiles* tiles : runnable_tiles()) names.emplace_back(tiles->isa);
    return names;
  });
  using Free = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Engine> engine(module, "Engine");
  engine
      .def(nb::init<unsigned, const std::string&>(), "threads"_a, "instruction_set"_a)
      .def_prop_ro("threads", [](const Engine& engine) { return engine.pool.threads(); })
      .def_prop_ro("instruction_set", [](const Engine& engine) { return engine.tiles.isa; })
      .def("rgi_closed_form", &bind_rgi_closed_form, "x"_a.noconvert(), "g"_a.noconvert(), "lam"_a.noconvert(), "scale"_a.noconvert(), "mask"_a.noconvert(),
           "cotangent"_a.noconvert(), "objective"_a.noconvert(), Free())
      .def("rgi_gradient", &bind_rgi_gradient, "x"_a.noconvert(), "g"_a.noconvert(), "mask"_a.noconvert(),
           "lam"_a.noconvert(), "scale"_a.noconvert(), "cotangent"_a.noconvert(), "mask_gradient"_a.noconvert(),
           "objective"_a.noconvert(), Free())
      .def("residual_l2", &bind_residual<Loss::l2>, "x"_a.noconvert(), "g"_a.noconvert(), "scale"_a.noconvert(),
           "cotangent"_a.noconvert(), "objective"_a.noconvert(), "weight"_a.noconvert().none(), Free())
      .def("residual_l1", &bind_residual<Loss::l1>, "x"_a.noconvert(), "g"_a.noconvert(), "scale"_a.noconvert(),
           "cotangent"_a.noconvert(), "objective"_a.noconvert(), "weight"_a.noconvert().none(), Free())
      .def("adam", &bind_adam, "p"_a.noconvert(), "grad"_a.noconvert(), "m"_a.noconvert(), "v"_a.noconvert(),
           "step"_a, "lr"_a, "beta1"_a, "beta2"_a, "eps"_a, "lower"_a, "upper"_a, Free())
      .def("project_ball", &bind_project_ball, "p"_a.noconvert(), "centre"_a.noconvert().none(),
           "radius"_a.noconvert(), Free())
      .def("norms", &bind_norms, "x"_a.noconvert(), "squared"_a.noconvert(), "largest"_a.noconvert(), Free())
      .def("all_finite", &bind_all_finite, "x"_a.noconvert(), Free());
  bind_image_terms(engine);
  bind_feature_terms(engine);
  bind_energy_terms(engine);
  bind_k_centre(module);
}
