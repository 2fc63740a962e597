// Bindings of the distances of features; see `FeatureTerms` in Python.
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "bindings.hpp"
#include "feature_drivers.hpp"

namespace unblemish::cpu {
namespace {

using namespace nb::literals;

using Matrix = Array<const float, nb::ndim<2>>;
using MatrixOut = Array<float, nb::ndim<2>>;
using Stack = Array<const float, nb::ndim<3>>;
using StackOut = Array<float, nb::ndim<3>>;
using Cells = Array<const int, nb::ndim<2>>;
using CellsOut = Array<int, nb::ndim<2>>;

// Every number is below `limit`.
void require_below(const int* values, std::size_t count, std::size_t limit) {
  int largest = std::numeric_limits<int>::min();
  for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, values[i]);
  require(largest < 0 || static_cast<std::size_t>(largest) < limit);
}

template <class A>
bool per_cell(const A& a, const Stack& f) {
  return a.shape(0) == f.shape(0) && a.shape(1) == f.shape(1);
}

CellArrays cell_arrays(const Stack& f, const Matrix& mean, const Cells& cells, const MatrixOut& scores,
                       const std::optional<StackOut>& cotangent) {
  require(f.size() > 0 && mean.size() > 0 && mean.shape(1) == f.shape(2));
  require(per_cell(cells, f) && per_cell(scores, f) && (!cotangent || same_shape(*cotangent, f)));
  require_below(cells.data(), cells.size(), mean.shape(0));
  return {f.data(),   mean.data(), cells.data(), scores.data(), cotangent ? cotangent->data() : nullptr,
          f.shape(0), f.shape(1),  f.shape(2),   mean.shape(0)};
}

Span span_of(const std::optional<StackOut>& a) { return a ? span(*a) : Span{nullptr, nullptr}; }

void bind_mahalanobis(Engine& engine, Stack f, Matrix mean, Matrix whitening, Cells cells, MatrixOut scores,
                      std::optional<StackOut> cotangent) {
  const CellArrays a = cell_arrays(f, mean, cells, scores, cotangent);
  require(whitening.shape(0) == a.places && whitening.shape(1) == a.channels * (a.channels + 1) / 2);
  require_apart({span(scores), span_of(cotangent), span(f), span(mean), span(whitening), span(cells)}, 2);
  mahalanobis(engine, a, whitening.data());
}

void bind_mahalanobis_low_rank(Engine& engine, Stack f, Matrix mean, Stack basis, PerItem inverse_variance,
                               Cells cells, MatrixOut scores, std::optional<StackOut> cotangent) {
  const CellArrays a = cell_arrays(f, mean, cells, scores, cotangent);
  require(basis.shape(0) == a.places && basis.shape(1) == a.channels && basis.shape(2) > 0);
  require(inverse_variance.size() == a.places);
  require_apart({span(scores), span_of(cotangent), span(f), span(mean), span(basis), span(inverse_variance),
                 span(cells)},
                2);
  mahalanobis_low_rank(engine, a, basis.data(), inverse_variance.data(), basis.shape(2));
}

void bind_top_candidates(Engine& engine, Matrix queries, Matrix bank, CellsOut index, MatrixOut distances,
                         std::optional<PerItem> norms) {
  require(queries.size() > 0 && bank.size() > 0 && index.size() > 0 && queries.shape(1) == bank.shape(1));
  require(index.shape(0) == queries.shape(0) && index.shape(1) <= bank.shape(0) && same_shape(index, distances));
  require(!norms || norms->size() == bank.shape(0));
  require(bank.shape(0) <= static_cast<std::size_t>(std::numeric_limits<int>::max()));
  const Span lengths = norms ? span(*norms) : Span{nullptr, nullptr};
  require_apart({span(index), span(distances), span(queries), span(bank), lengths}, 2);
  top_candidates(engine, {queries.data(), bank.data(), norms ? norms->data() : nullptr, index.data(),
                          distances.data(), queries.shape(0), bank.shape(0), bank.shape(1), index.shape(1)});
}

void bind_nearest_candidate(Engine& engine, Stack f, Matrix bank, Array<const int, nb::ndim<3>> candidates,
                            MatrixOut scores, std::optional<StackOut> cotangent, CellsOut chosen) {
  require(f.size() > 0 && bank.size() > 0 && candidates.size() > 0 && bank.shape(1) == f.shape(2));
  require(per_cell(candidates, f) && per_cell(scores, f) && per_cell(chosen, f));
  require(!cotangent || same_shape(*cotangent, f));
  require_below(candidates.data(), candidates.size(), bank.shape(0));
  require_apart({span(scores), span(chosen), span_of(cotangent), span(f), span(bank), span(candidates)}, 3);
  nearest_candidate(engine, {f.data(), bank.data(), candidates.data(), scores.data(),
                             cotangent ? cotangent->data() : nullptr, chosen.data(), f.shape(0) * f.shape(1),
                             f.shape(2), candidates.shape(2)});
}

}  // namespace

void bind_feature_terms(nb::class_<Engine>& engine) {
  using Free = nb::call_guard<nb::gil_scoped_release>;
  engine
      .def("mahalanobis", &bind_mahalanobis, "f"_a.noconvert(), "mean"_a.noconvert(), "whitening"_a.noconvert(),
           "cells"_a.noconvert(), "scores"_a.noconvert(), "cotangent"_a.noconvert().none(), Free())
      .def("mahalanobis_low_rank", &bind_mahalanobis_low_rank, "f"_a.noconvert(), "mean"_a.noconvert(),
           "basis"_a.noconvert(), "inverse_variance"_a.noconvert(), "cells"_a.noconvert(), "scores"_a.noconvert(),
           "cotangent"_a.noconvert().none(), Free())
      .def("top_candidates", &bind_top_candidates, "queries"_a.noconvert(), "bank"_a.noconvert(),
           "index"_a.noconvert(), "distances"_a.noconvert(), "norms"_a.noconvert().none(), Free())
      .def("nearest_candidate", &bind_nearest_candidate, "f"_a.noconvert(), "bank"_a.noconvert(),
           "candidates"_a.noconvert(), "scores"_a.noconvert(), "cotangent"_a.noconvert().none(),
           "chosen"_a.noconvert(), Free());
}

}  // namespace unblemish::cpu
