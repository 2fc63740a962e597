"""Rules of `cropping.py`: against torch autograd, and against central differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import parser
from torch.nn import functional as F

Check = Callable[..., Any]


def model(text: str, opset: int = 21) -> onnx.ModelProto:
    """A graph in ONNX text; shapes of outputs that are written as [] are inferred."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
    for output in proto.graph.output:
        if not output.type.tensor_type.shape.dim:
            output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto)


def numbers(values: list[int]) -> str:
    return f"{{{', '.join(map(str, values))}}}"


def indexed(x: torch.Tensor, axis: int, index: np.ndarray) -> torch.Tensor:
    """x at NumPy's indices along an axis: the oracle of every slice."""
    return x.index_select(axis, torch.from_numpy(np.ascontiguousarray(index)))


SLICES = [(0, 3, 1), (2, -1, 1), (-4, 100, 1), (1, 9, 2), (0, 9, 3), (-1, -100, -1), (7, 1, -2),
          (8, -8, -3), (100, 0, -1), (4, 5, 1), (2, 3, 4), (-100, 100, 1)]  # fmt: skip


@pytest.mark.parametrize("given", ["constants", "inputs"])
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("bounds", SLICES)
def test_slice_gradient_equals_torch(
    bounds: tuple[int, int, int], symbolic: bool, given: str, check_gradients: Check
) -> None:
    names = ("starts", "ends", "steps")
    shape = "N, L, 2" if symbolic else "3, 9, 2"
    values = {
        n: np.array([v, 0 if n == "starts" else 2 if n == "ends" else 1])
        for n, v in zip(names, bounds, strict=True)
    }
    declared = ", ".join(f"int64[2] {n}" for n in names)
    constants = ", ".join(f"int64[2] {n} = {numbers(v.tolist())}" for n, v in values.items())
    body = "{ y = Slice(x, starts, ends, axes, steps) }"
    axes = "int64[2] axes = {1, -1}"
    text = (
        f"(float[{shape}] x) => (float[] y) <{axes}, {constants}> {body}"
        if given == "constants"
        else f"(float[{shape}] x, {declared}) => (float[a, b, c] y) <{axes}> {body}"
    )
    check_gradients(
        model(text),
        lambda x, **_: indexed(x, 1, np.arange(9)[slice(*bounds)]),
        wrt=["x"],
        sizes={"N": 3, "L": 9},
        inputs={} if given == "constants" else values,
    )


def test_slice_with_attributes_equals_torch(check_gradients: Check) -> None:
    check_gradients(
        model("(float[4, 7] x) => (float[] y) { y = Slice<starts = [1], ends = [3]>(x) }", 9),
        lambda x: x[1:3],
    )


def padded(x: torch.Tensor, pads: list[int], mode: str) -> torch.Tensor:
    """Pad every axis by NumPy's index rule; zeros for mode constant."""
    rank = x.dim()
    for axis in range(rank):
        before, after = pads[axis], pads[axis + rank]
        if mode == "constant":
            widths = [0] * 2 * (rank - 1 - axis) + [before, after]
            x = F.pad(x, widths)
        else:
            index = np.pad(np.arange(x.shape[axis]), (before, after), mode=mode)  # type: ignore[call-overload]
            x = indexed(x, axis, index)
    return x


PADS = [[0, 0, 1, 2, 0, 0, 3, 0], [0, 1, 0, 3, 0, 0, 2, 4], [0, 0, 0, 0, 1, 0, 0, 1]]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", PADS)
def test_pad_gradient_equals_torch(
    pads: list[int], mode: str, symbolic: bool, check_gradients: Check
) -> None:
    shape = "N, 3, H, W" if symbolic else "2, 3, 4, 5"
    check_gradients(
        model(
            f"(float[{shape}] x) => (float[] y) <int64[8] pads = {numbers(pads)}> "
            f'{{ y = Pad<mode = "{mode}">(x, pads) }}'
        ),
        lambda x: padded(x, pads, mode),
        sizes={"N": 2, "H": 4, "W": 5},
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_pad_gradient_equals_torch_pad(mode: str, check_gradients: Check) -> None:
    name = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    check_gradients(
        model(
            "(float[2, 3, 5, 19] x) => (float[] y) <int64[8] pads = {0, 0, 2, 4, 0, 0, 3, 1}> "
            f'{{ y = Pad<mode = "{name}">(x, pads) }}'
        ),
        lambda x: F.pad(x, (4, 1, 2, 3), mode=mode),
    )


@pytest.mark.parametrize("mode", ["edge", "wrap", "reflect"])
def test_pad_of_short_axes_equals_numpy(mode: str, check_gradients: Check) -> None:
    amount = 4 if mode == "edge" else 2
    size = 1 if mode == "edge" else 3
    pads = [0, amount, 0, amount]
    check_gradients(
        model(
            f"(float[2, {size}] x) => (float[] y) <int64[4] pads = {numbers(pads)}> "
            f'{{ y = Pad<mode = "{mode}">(x, pads) }}'
        ),
        lambda x: padded(x, pads, mode),
    )


@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_computed_pads_equal_numpy(mode: str, check_gradients: Check) -> None:
    pads = np.array([1, 2, 0, 3])
    check_gradients(
        model(
            "(float[2, L] x, int64[4] pads) => (float[a, b] y) "
            f'{{ y = Pad<mode = "{mode}">(x, pads) }}'
        ),
        lambda x, pads: padded(x, pads.tolist(), mode),
        wrt=["x"],
        sizes={"L": 5},
        inputs={"pads": pads},
    )


def test_negative_pads_crop(check_gradients: Check) -> None:
    check_gradients(
        model(
            "(float[4, 6] x) => (float[] y) <int64[4] pads = {-1, 2, 0, -3}> { y = Pad(x, pads) }"
        ),
        lambda x: F.pad(x, (2, -3, -1, 0)),
    )


def test_pad_on_some_axes_and_of_the_value_equals_torch(check_gradients: Check) -> None:
    def function(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        inside = F.pad(torch.ones_like(x), (0, 0, 1, 2)) > 0
        return torch.where(inside, F.pad(x, (0, 0, 1, 2)), v)

    check_gradients(
        model(
            "(float[3, 4, 5] x, float v) => (float[] y) "
            "<int64[2] pads = {1, 2}, int64[1] axes = {-2}> { y = Pad(x, pads, v, axes) }"
        ),
        function,
    )
