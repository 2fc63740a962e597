// Python bindings of the terms and the step of energy projection; see module.cpp.
#include <nanobind/stl/optional.h>

#include <optional>

#include "bindings.hpp"
#include "energy_drivers.hpp"

using namespace nb::literals;

namespace unblemish::cpu {
namespace {

using Maybe = std::optional<Image>;
using MaybeOut = std::optional<ImageOut>;

Images images_of(const Image& x) {
  return {x.shape(0), {x.shape(1), x.shape(2), x.shape(3), x.shape(2) * x.shape(3)}};
}

template <class A>
Span span_of(const std::optional<A>& a) {
  return a ? span(*a) : Span{nullptr, nullptr};
}

template <class A>
auto data_of(const std::optional<A>& a) {
  return a ? a->data() : nullptr;
}

template <class A>
bool is_one_row(const A& a, const Image& x) {
  return a.shape(0) == x.shape(0) && a.shape(1) == 1 && a.shape(2) == x.shape(2) && a.shape(3) == x.shape(3);
}

bool is_positive(double setting) { return setting > 0.0 && setting < HUGE_VAL; }

void bind_dssim(Engine& engine, Image x, Image g, PerItem scale, double data_range, long long window, double sigma,
                MaybeOut dissimilarity, MaybeOut direct, MaybeOut cotangent, PerItemOut objective) {
  require_items(x, {scale.size(), objective.size()});
  require(same_shape(x, g) && (!dissimilarity || is_one_row(*dissimilarity, x)));
  require((!direct || same_shape(x, *direct)) && (!cotangent || same_shape(x, *cotangent)));
  require(window >= 1 && window <= static_cast<long long>(kMostTaps) && window % 2 == 1);
  require(is_positive(data_range) && is_positive(sigma));
  require_apart({span(objective), span_of(dissimilarity), span_of(direct), span_of(cotangent), span(x), span(g),
                 span(scale)},
                4);
  dssim(engine, images_of(x),
        {x.data(), g.data(), scale.data(), data_of(dissimilarity), data_of(direct), data_of(cotangent),
         objective.data()},
        data_range, static_cast<std::size_t>(window / 2), sigma);
}

void bind_gaussian_nll(Engine& engine, Image x, Image g, Image log_scale, PerItem scale, ImageOut cotangent,
                       ImageOut log_scale_cotangent, PerItemOut objective) {
  require_items(x, {scale.size(), objective.size()});
  require(same_shape(x, g) && same_shape(x, cotangent) && same_shape(log_scale, log_scale_cotangent));
  const bool shared = is_one_row(log_scale, x);
  require(shared || same_shape(log_scale, x));
  require_apart({span(cotangent), span(log_scale_cotangent), span(objective), span(x), span(g), span(log_scale),
                 span(scale)},
                3);
  gaussian_nll(engine, images_of(x), shared,
               {{x.data(), g.data(), log_scale.data(), 0.0f, cotangent.data(), log_scale_cotangent.data()},
                scale.data(),
                objective.data()});
}

bool are_non_negative(const PerItem& a) {
  for (std::size_t b = 0; b < a.size(); ++b)
    if (!(a.data()[b] >= 0.0f)) return false;
  return true;
}

void bind_energy_step(Engine& engine, ImageOut x, Image start, Image pulled, PerItem lam, PerItem rate, Maybe direct,
                      double direct_factor, Maybe mask, Maybe restored, MaybeOut first, MaybeOut second,
                      long long step, double beta1, double beta2, double eps, bool weigh_step, bool proximal,
                      double lower, double upper, PerItemOut l1, PerItemOut squared_change,
                      PerItemOut largest_change) {
  require_items(start, {lam.size(), rate.size(), l1.size(), squared_change.size(), largest_change.size()});
  require(same_shape(start, x) && same_shape(start, pulled) && (!direct || same_shape(start, *direct)));
  require((!restored || same_shape(start, *restored)) && first.has_value() == second.has_value());
  require(!first || (same_shape(start, *first) && same_shape(start, *second)));
  const bool shared = mask && is_one_row(*mask, start);
  require(!mask || shared || same_shape(start, *mask));
  require(step >= 1 && lower <= upper && eps >= 0.0 && beta1 >= 0.0 && beta1 < 1.0 && beta2 >= 0.0 && beta2 < 1.0);
  require(are_non_negative(lam) && are_non_negative(rate));
  require_apart({span(x), span_of(first), span_of(second), span(l1), span(squared_change), span(largest_change),
                 span(start), span(pulled), span(lam), span(rate), span_of(direct), span_of(mask), span_of(restored)},
                6);
  const EnergyTile tile{x.data(),      start.data(),    pulled.data(),     data_of(direct), static_cast<float>(direct_factor),
                        data_of(mask), data_of(restored), data_of(first), data_of(second)};
  energy_step(engine, images_of(start),
              {tile, shared, lam.data(), rate.data(), l1.data(), squared_change.data(), largest_change.data()},
              adam_step(step, 1.0, beta1, beta2, eps, lower, upper), {weigh_step, proximal});
}

}  // namespace

void bind_energy_terms(nb::class_<Engine>& engine) {
  using Free = nb::call_guard<nb::gil_scoped_release>;
  engine.def("dssim", &bind_dssim, "x"_a.noconvert(), "g"_a.noconvert(), "scale"_a.noconvert(), "data_range"_a,
             "window"_a, "sigma"_a, "dissimilarity"_a.noconvert().none(), "direct"_a.noconvert().none(),
             "cotangent"_a.noconvert().none(), "objective"_a.noconvert(), Free());
  engine.def("gaussian_nll", &bind_gaussian_nll, "x"_a.noconvert(), "g"_a.noconvert(), "log_scale"_a.noconvert(),
             "scale"_a.noconvert(), "cotangent"_a.noconvert(), "log_scale_cotangent"_a.noconvert(),
             "objective"_a.noconvert(), Free());
  engine.def("energy_step", &bind_energy_step, "x"_a.noconvert(), "start"_a.noconvert(), "pulled"_a.noconvert(),
             "lam"_a.noconvert(), "rate"_a.noconvert(), "direct"_a.noconvert().none(), "direct_factor"_a,
             "mask"_a.noconvert().none(), "restored"_a.noconvert().none(), "first"_a.noconvert().none(),
             "second"_a.noconvert().none(), "step"_a, "beta1"_a, "beta2"_a, "eps"_a, "weigh_step"_a, "proximal"_a,
             "lower"_a, "upper"_a, "l1"_a.noconvert(), "squared_change"_a.noconvert(),
             "largest_change"_a.noconvert(), Free());
}

}  // namespace unblemish::cpu
