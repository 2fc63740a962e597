"""Engines as built, against the graphs they were built of in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

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


def limit_of(model: ModelProto) -> float:
    """Relative difference allowed, by the narrowest numbers that a graph holds.

    float32 sums in another order stray by some 1e-5; ReLUs at their kink may take the other side.
    Half types round at 1e-3 and 4e-3, eight bits at 4e-3 of a tensor's largest value, each layer.
    """
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    if kinds & {TensorProto.INT8, TensorProto.UINT8}:
        return 0.1
    return 0.03 if kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16} else 2e-3


def accept(figure: float, limit: float, what: str) -> float:
    """The figure. Raises: ModelError where it is above the limit."""
    if not figure <= limit:
        raise ModelError(
            f"the engine of {what} strays from ONNX Runtime by {figure:.2g} of its "
            f"length, allowed are {limit:.2g}. Nothing was written. Build without --tf32, or "
            "report it."
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
    """Largest over the tensors: |found - expected| / |expected|; infinite for NaN."""
    figures = [0.0]
    for name, want in expected.items():
        if want.dtype.kind != "f":
            continue
        length = max(float(np.linalg.norm(want.astype(np.float64))), 1e-30)
        off = float(np.linalg.norm(found[name].astype(np.float64) - want)) / length
        figures.append(off if np.isfinite(off) else float("inf"))
    return max(figures)
