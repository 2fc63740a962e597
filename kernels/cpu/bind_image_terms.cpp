// Python bindings of the terms and the update of F2PAD; see module.cpp.
#include "bindings.hpp"
#include "image_drivers.hpp"

using namespace nb::literals;

namespace unblemish::cpu {
namespace {

using Bytes = Array<const std::uint8_t, nb::ndim<4>>;
using Table = Array<const Float16, nb::ndim<4>>;
using TableOut = Array<Float16, nb::ndim<4>>;
using Means = Array<const float, nb::ndim<2>>;
using Matrices = Array<const float, nb::ndim<3>>;

Images images_of(const Image& x) {
  return {x.shape(0), {x.shape(1), x.shape(2), x.shape(3), x.shape(2) * x.shape(3)}};
}

void require_one_row(const Bytes& free, const Image& x) {
  require(free.shape(0) == x.shape(0) && free.shape(1) == 1 && free.shape(2) == x.shape(2) &&
          free.shape(3) == x.shape(3));
}

template <class T>
void require_table(const T& weights, const Image& x, long long radius) {
  require(radius >= 0 && radius < 1 << 15);
  const std::size_t side = 2 * static_cast<std::size_t>(radius) + 1;
  require(weights.shape(0) == x.shape(0) && weights.shape(1) == side * side && weights.shape(2) == x.shape(2) &&
          weights.shape(3) == x.shape(3));
}

void require_sigmas(double space, double colour) { require(space > 0.0 && colour > 0.0); }

void bind_total_variation(Engine& engine, Image n, PerItem weight, ImageOut gradient, PerItemOut value) {
  require_items(n, {weight.size(), value.size()});
  require(same_shape(n, gradient));
  require_apart({span(gradient), span(value), span(n), span(weight)}, 2);
  total_variation(engine, images_of(n), n.data(), weight.data(), gradient.data(), value.data());
}

void bind_log_penalty(Engine& engine, Image x, Image n, PerItem weight, Bytes free, double epsilon, ImageOut gradient,
                      PerItemOut value) {
  require_items(n, {weight.size(), value.size()});
  require(same_shape(n, x) && same_shape(n, gradient) && epsilon > 0.0);
  require_one_row(free, n);
  require_apart({span(gradient), span(value), span(n), span(x), span(weight), span(free)}, 2);
  log_penalty(engine, images_of(n),
              {x.data(), n.data(), free.data(), 0.0f, static_cast<float>(epsilon), gradient.data()}, weight.data(),
              value.data());
}

void bind_mixture_prior(Engine& engine, Image n, Means means, Matrices precisions, PerItem weight, Bytes free,
                        ImageOut gradient, PerItemOut value) {
  require_items(n, {weight.size(), value.size()});
  const std::size_t components = means.shape(0), channels = n.shape(1);
  require(same_shape(n, gradient) && components > 0 && means.shape(1) == channels);
  require(precisions.shape(0) == components && precisions.shape(1) == channels && precisions.shape(2) == channels);
  require_one_row(free, n);
  require_apart({span(gradient), span(value), span(n), span(means), span(precisions), span(weight), span(free)}, 2);
  mixture_prior(engine, images_of(n), {n.data(), free.data(), 0.0f, gradient.data()},
                {means.data(), precisions.data(), components}, weight.data(), value.data());
}

void bind_sharing_weights(Engine& engine, Image x, long long radius, double sigma_space, double sigma_colour,
                          TableOut weights) {
  require_items(x, {});
  require_table(weights, x, radius);
  require_sigmas(sigma_space, sigma_colour);
  require_apart({span(weights), span(x)}, 1);
  sharing_weights(engine, images_of(x), x.data(), static_cast<std::size_t>(radius), {sigma_space, sigma_colour},
                  reinterpret_cast<Half*>(weights.data()));
}

void bind_share_gradient(Engine& engine, Image gradient, Table weights, long long radius, ImageOut shared) {
  require_items(gradient, {});
  require(same_shape(gradient, shared));
  require_table(weights, gradient, radius);
  require_apart({span(shared), span(gradient), span(weights)}, 1);
  share_gradient(engine, images_of(gradient), gradient.data(), reinterpret_cast<const Half*>(weights.data()),
                 static_cast<std::size_t>(radius), shared.data());
}

void bind_share_gradient_direct(Engine& engine, Image gradient, Image x, long long radius, double sigma_space,
                                double sigma_colour, ImageOut shared) {
  require_items(gradient, {});
  require(same_shape(gradient, shared) && same_shape(gradient, x) && radius >= 0 && radius < 1 << 15);
  require_sigmas(sigma_space, sigma_colour);
  require_apart({span(shared), span(gradient), span(x)}, 1);
  share_gradient_direct(engine, images_of(gradient), gradient.data(), x.data(), static_cast<std::size_t>(radius),
                        {sigma_space, sigma_colour}, shared.data());
}


bool is_beta(double beta) { return beta >= 0.0 && beta < 1.0; }

void bind_adan(Engine& engine, ImageOut n, Image x, Image g, ImageOut first, ImageOut slope, ImageOut second,
               ImageOut previous, Bytes free, long long step, PerItem rate, double clip, double lower, double upper,
               double floor, double beta1, double beta2, double beta3, double eps) {
  require_items(x, {rate.size()});
  require(same_shape(n, x) && same_shape(n, g) && same_shape(n, first) && same_shape(n, slope) &&
          same_shape(n, second) && same_shape(n, previous));
  require_one_row(free, x);
  require(step >= 1 && clip > 0.0 && lower <= upper && floor > 0.0 && eps >= 0.0);
  require(is_beta(beta1) && is_beta(beta2) && is_beta(beta3));
  require_apart({span(n), span(first), span(slope), span(second), span(previous), span(x), span(g), span(rate),
                 span(free)},
                5);
  adan(engine, images_of(x),
       {n.data(), x.data(), g.data(), first.data(), slope.data(), second.data(), previous.data(), free.data(), 0.0f},
       adan_step(step, clip, lower, upper, floor, beta1, beta2, beta3, eps), rate.data());
}

}  // namespace

void bind_image_terms(nb::class_<Engine>& engine) {
  using Free = nb::call_guard<nb::gil_scoped_release>;
  engine
      .def("total_variation", &bind_total_variation, "n"_a.noconvert(), "weight"_a.noconvert(),
           "gradient"_a.noconvert(), "value"_a.noconvert(), Free())
      .def("log_penalty", &bind_log_penalty, "x"_a.noconvert(), "n"_a.noconvert(), "weight"_a.noconvert(),
           "free"_a.noconvert(), "epsilon"_a, "gradient"_a.noconvert(), "value"_a.noconvert(), Free())
      .def("mixture_prior", &bind_mixture_prior, "n"_a.noconvert(), "means"_a.noconvert(),
           "precisions"_a.noconvert(), "weight"_a.noconvert(), "free"_a.noconvert(), "gradient"_a.noconvert(),
           "value"_a.noconvert(), Free())
      .def("sharing_weights", &bind_sharing_weights, "x"_a.noconvert(), "radius"_a, "sigma_space"_a,
           "sigma_colour"_a, "weights"_a.noconvert(), Free())
      .def("share_gradient", &bind_share_gradient, "gradient"_a.noconvert(), "weights"_a.noconvert(), "radius"_a,
           "shared"_a.noconvert(), Free())
      .def("share_gradient_direct", &bind_share_gradient_direct, "gradient"_a.noconvert(), "x"_a.noconvert(),
           "radius"_a, "sigma_space"_a, "sigma_colour"_a, "shared"_a.noconvert(), Free())
      .def("adan", &bind_adan, "n"_a.noconvert(), "x"_a.noconvert(), "g"_a.noconvert(), "first"_a.noconvert(),
           "slope"_a.noconvert(), "second"_a.noconvert(), "previous"_a.noconvert(), "free"_a.noconvert(), "step"_a,
           "rate"_a.noconvert(), "clip"_a, "lower"_a, "upper"_a, "floor"_a, "beta1"_a, "beta2"_a, "beta3"_a, "eps"_a,
           Free());
}

}  // namespace unblemish::cpu
