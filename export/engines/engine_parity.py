"""Engines as built, against the graphs they were built of in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ModelError
from unblemish.runtime.backends.protocol import Array, Pair, Program, TensorSpec


def check_pair(found: Pair, expected: Pair, sizes: Mapping[str, Sequence[int]]) -> float:
    """Largest relative l2 difference of outputs and gradients, on normal numbers.

    Args:
        sizes: shape of every input.
    """
    feeds = _feeds(expected.inputs, sizes)
    there, want = _copied(found.forward(feeds)), _copied(expected.forward(feeds))
    rng = np.random.default_rng(1)
    cotangents = {
        name: rng.standard_normal(array.shape).astype(array.dtype) for name, array in want.items()
    }
    back, wanted = _copied(found.backward(cotangents)), _copied(expected.backward(cotangents))
    return max(_strayed(there, want), _strayed(back, wanted))


def check_program(found: Program, expected: Program, sizes: Mapping[str, Sequence[int]]) -> float:
    """As `check_pair`, of one graph."""
    feeds = _feeds(expected.inputs, sizes)
    return _strayed(_copied(found.run(feeds)), _copied(expected.run(feeds)))


def accept(figure: float, limit: float, what: str) -> float:
    """The figure. Raises: ModelError where it is above the limit."""
    if not figure <= limit:
        raise ModelError(
            f"the engine of {what} strays from ONNX Runtime by {figure:.2g} of the result's length, "
            f"allowed are {limit:.2g}. Nothing was written. Build without --tf32, or report it."
        )
    return figure


def _feeds(
    specs: Sequence[TensorSpec], sizes: Mapping[str, Sequence[int]]
) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        spec.name: (
            rng.standard_normal(tuple(sizes[spec.name])).astype(spec.dtype)
            if spec.dtype.kind == "f"
            else np.zeros(tuple(sizes[spec.name]), spec.dtype)
        )
        for spec in specs
    }


def _copied(results: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in results.items()}


def _strayed(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Largest over the tensors: |found - expected| / |expected|; NaN and missing count as infinite."""
    figures = [0.0]
    for name, want in expected.items():
        if want.dtype.kind != "f":
            continue
        length = max(float(np.linalg.norm(want.astype(np.float64))), 1e-30)
        off = float(np.linalg.norm(found[name].astype(np.float64) - want)) / length
        figures.append(off if np.isfinite(off) else float("inf"))
    return max(figures)
