"""Graphs for every engine family, and what they compute in closed form."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.runtime.backends import Backend, open_backend
from unblemish.runtime.backends.ort_device import OrtDeviceBackend

# Sums of 4 products of float32 numbers of order 1, in any order of summation.
TOLERANCE = 1e-6
# 3x3x2 products and three layers: rounding of 18-term sums, carried through.
CONV_TOLERANCE = 1e-5

HEADER = '<ir_version: 9, opset_import: ["": 17]>\n'
W = np.array(
    [[1.0, -2.0, 0.5], [0.25, 1.5, -1.0], [-0.75, 0.1, 2.0], [1.25, -0.5, 0.3]], np.float32
)
WEIGHT = "<float[4,3] W = {1, -2, 0.5, 0.25, 1.5, -1, -0.75, 0.1, 2, 1.25, -0.5, 0.3}>"
TANH = f"g (float[batch,4] x) => (float[batch,3] y) {WEIGHT} {{ h = MatMul(x, W) y = Tanh(h) }}"
# The forward graph keeps a boolean mask and its own output; `norm` is an output without cotangent.
FORWARD = f"""g (float[batch,4] x) => (float[batch,3] y, float[batch] norm, bool[batch,3] kept)
    {WEIGHT} {{
    h = MatMul(x, W)
    zero = Constant<value = float {{0}}>()
    kept = Greater(h, zero)
    r = Where(kept, h, zero)
    y = Tanh(r)
    square = Mul(y, y)
    axes = Constant<value_ints = [1]>()
    norm = ReduceSum<keepdims = 0>(square, axes)
}}"""
BACKWARD = f"""g (bool[batch,3] kept, float[batch,3] y, float[batch,3] ct_y)
    => (float[batch,4] grad_x)
    {WEIGHT} {{
    zero = Constant<value = float {{0}}>()
    one = Constant<value = float {{1}}>()
    square = Mul(y, y)
    slope = Sub(one, square)
    g = Mul(ct_y, slope)
    masked = Where(kept, g, zero)
    Wt = Transpose<perm = [1, 0]>(W)
    grad_x = MatMul(masked, Wt)
}}"""

Write = Callable[[str], str]


def installed(name: str) -> Backend:
    if name == "ort-cpu":
        return OrtDeviceBackend(name, threads=1)
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return open_backend(name, threads=1)


def latents(rng: np.random.Generator, batch: int) -> NDArray[np.float32]:
    return rng.standard_normal((batch, 4)).astype(np.float32)


def gradient(x: NDArray[np.float32], ct: NDArray[np.float32]) -> NDArray[np.float64]:
    """Closed form of d sum(ct tanh(relu(x W))) / dx."""
    h = x.astype(np.float64) @ W
    return (ct * (1 - np.tanh(np.maximum(h, 0)) ** 2) * (h > 0)) @ W.T.astype(np.float64)


def write_with_weight(text: str, weight: NDArray[np.float32], path: Path) -> str:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(HEADER + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    onnx.save(model, str(path))
    return str(path)
