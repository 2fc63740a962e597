"""What the distances of features demand of their arrays; see `checks`."""

from __future__ import annotations

from typing import Any

import numpy as np

from unblemish.errors import ConfigError, ShapeError
from unblemish.kernels.checks import Shape, _apart, _array
from unblemish.kernels.device_array import DeviceArray


def mahalanobis(
    f: Any, mean: Any, whitening: Any, cells: Any, *, scores: Any, cotangent: Any
) -> None:
    """Check the arguments of `FeatureTerms.mahalanobis`. Raises: ShapeError, ConfigError."""
    where = "mahalanobis"
    places = _places(where, f, mean, cells)
    channels = f.shape[2]
    _array(where, "whitening", whitening, (places, channels * (channels + 1) // 2))
    inputs = {"f": f, "mean": mean, "whitening": whitening, "cells": cells}
    _outputs(where, f.shape, scores, cotangent, {}, inputs)


def mahalanobis_low_rank(
    f: Any,
    mean: Any,
    basis: Any,
    inverse_variance: Any,
    cells: Any,
    *,
    scores: Any,
    cotangent: Any,
) -> None:
    """Check the arguments of `FeatureTerms.mahalanobis_low_rank`. Raises: as `mahalanobis`."""
    where = "mahalanobis_low_rank"
    places = _places(where, f, mean, cells)
    shape = _ranked(where, "basis", basis, 3, "(places, channels, rank)")
    _array(where, "basis", basis, (places, f.shape[2], shape[2]))
    _array(where, "inverse_variance", inverse_variance, (places,))
    inputs = {"f": f, "mean": mean, "basis": basis, "cells": cells}
    inputs["inverse_variance"] = inverse_variance
    _outputs(where, f.shape, scores, cotangent, {}, inputs)


def top_candidates(queries: Any, bank: Any, *, index: Any, distances: Any, norms: Any) -> None:
    """Check the arguments of `FeatureTerms.top_candidates`. Raises: ShapeError, ConfigError."""
    where = "top_candidates"
    shape = _ranked(where, "queries", queries, 2, "(queries, channels)")
    rows = _ranked(where, "bank", bank, 2, "(rows, channels)")[0]
    _array(where, "bank", bank, (rows, shape[1]))
    found = _ranked(where, "index", index, 2, "(queries, k)", np.int32, out=True)
    if found[1] > rows:
        raise ConfigError(f"{where}: k must be 1 to {rows}, the rows of the bank; got {found[1]}.")
    _array(where, "index", index, (shape[0], found[1]), np.int32, out=True)
    _array(where, "distances", distances, (shape[0], found[1]), out=True)
    inputs = {"queries": queries, "bank": bank}
    if norms is not None:
        _array(where, "norms", norms, (rows,))
        inputs["norms"] = norms
    _apart(where, {"index": index, "distances": distances}, inputs)


def nearest_candidate(
    f: Any, bank: Any, candidates: Any, *, scores: Any, cotangent: Any, chosen: Any
) -> None:
    """Check the arguments of `FeatureTerms.nearest_candidate`. Raises: ShapeError, ConfigError."""
    where = "nearest_candidate"
    shape = _features(where, f)
    rows = _ranked(where, "bank", bank, 2, "(rows, channels)")[0]
    _array(where, "bank", bank, (rows, shape[2]))
    count = _ranked(where, "candidates", candidates, 3, "(items, cells, k)", np.int32)[2]
    _array(where, "candidates", candidates, (*shape[:2], count), np.int32)
    _below(where, "candidates", candidates, rows, "rows in the bank")
    _array(where, "chosen", chosen, shape[:2], np.int32, out=True)
    inputs = {"f": f, "bank": bank, "candidates": candidates}
    _outputs(where, shape, scores, cotangent, {"chosen": chosen}, inputs)


def _places(where: str, f: Any, mean: Any, cells: Any) -> int:
    """Check what both forms share, and return the number of places."""
    shape = _features(where, f)
    places = _ranked(where, "mean", mean, 2, "(places, channels)")[0]
    _array(where, "mean", mean, (places, shape[2]))
    _array(where, "cells", cells, shape[:2], np.int32)
    _below(where, "cells", cells, places, "places")
    return places


def _features(where: str, f: Any) -> Shape:
    return _ranked(where, "f", f, 3, "(items, cells, channels)")


def _outputs(
    where: str,
    shape: Shape,
    scores: Any,
    cotangent: Any,
    others: dict[str, Any],
    inputs: dict[str, Any],
) -> None:
    _array(where, "scores", scores, shape[:2], out=True)
    outputs = {"scores": scores, **others}
    if cotangent is not None:
        _array(where, "cotangent", cotangent, shape, out=True)
        outputs["cotangent"] = cotangent
    _apart(where, outputs, inputs)


def _ranked(
    where: str,
    name: str,
    array: Any,
    rank: int,
    meaning: str,
    dtype: Any = np.float32,
    *,
    out: bool = False,
) -> Shape:
    shape = _array(where, name, array, None, dtype, out=out)
    if len(shape) != rank or 0 in shape:
        raise ShapeError(f"{where}: {name} must be {meaning} with every size >= 1, found {shape}.")
    return shape


def _below(where: str, name: str, array: Any, limit: int, what: str) -> None:
    if isinstance(array, DeviceArray):
        return
    largest = int(array.max())
    if largest >= limit:
        raise ConfigError(f"{where}: {name} holds {largest}, but there are {limit} {what}.")
