"""Rules of `layout.py`: against torch autograd, and against central differences in float64."""

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


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_gradient_equals_torch(axis: int, check_gradients: Check) -> None:
    shapes = [[3, 5, 7] for _ in range(3)]
    for i, width in enumerate((1, 4, 2)):
        shapes[i][axis] = width
    inputs = ", ".join(f"float{s} x{i}" for i, s in enumerate(shapes))
    text = f"({inputs}) => (float[] y) {{ y = Concat<axis = {axis}>(x0, x1, x2) }}"
    check_gradients(model(text), lambda x0, x1, x2: torch.cat([x0, x1, x2], axis))
    check_gradients(model(text), lambda x0, x1, x2: torch.cat([x0, x1, x2], axis), wrt=["x2", "x0"])


def test_concat_of_symbolic_lengths_equals_torch(check_gradients: Check) -> None:
    check_gradients(
        model("(float[2, A] a, float[2, B] b) => (float[] y) { y = Concat<axis = 1>(a, b, a) }"),
        lambda a, b: torch.cat([a, b, a], 1),
        sizes={"A": 3, "B": 5},
    )


@pytest.mark.parametrize("lengths", [[2, 3, 2], [1, 1, 5]])
def test_split_gradient_equals_torch(lengths: list[int], check_gradients: Check) -> None:
    text = (
        "(float[N, 7] x) => (float[] a, float[] b, float[] c) "
        f"<int64[3] lengths = {{{', '.join(map(str, lengths))}}}> "
        "{ a, b, c = Split<axis = 1>(x, lengths) }"
    )
    check_gradients(model(text), lambda x: torch.split(x, lengths, 1), sizes={"N": 3})
    check_gradients(
        model(text), lambda x: torch.split(x, lengths, 1)[1], sizes={"N": 3}, outputs=["b"]
    )


def test_uneven_split_gradient_equals_torch(check_gradients: Check) -> None:
    check_gradients(
        model(
            "(float[3, 8] x) => (float[] a, float[] b, float[] c) "
            "{ a, b, c = Split<axis = 1, num_outputs = 3>(x) }"
        ),
        lambda x: torch.split(x, 3, 1),
    )


SHAPES = {
    "Reshape<allowzero = 0>(x, s)": ("int64[3] s = {0, -1, 2}", lambda x: x.reshape(3, -1, 2)),
    "Flatten<axis = 2>(x)": ("", lambda x: x.reshape(3, -1)),
    "Flatten<axis = 0>(x)": ("", lambda x: x.reshape(1, -1)),
    "Squeeze(x, s)": ("int64[1] s = {-3}", lambda x: x.squeeze(1)),
    "Squeeze(x)": ("", lambda x: x.squeeze()),
    "Unsqueeze(x, s)": ("int64[2] s = {-1, 0}", lambda x: x[None, ..., None]),
    "Transpose<perm = [2, 0, 3, 1]>(x)": ("", lambda x: x.permute(2, 0, 3, 1)),
    "Transpose(x)": ("", lambda x: x.permute(3, 2, 1, 0)),
    "Expand(x, s)": ("int64[5] s = {2, 1, 5, 4, 1}", lambda x: x.expand(2, 3, 5, 4, 6)),
    "Tile(x, s)": ("int64[4] s = {2, 3, 1, 2}", lambda x: x.repeat(2, 3, 1, 2)),
    "Trilu<upper = 0>(x)": ("", torch.tril),
}


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("op", SHAPES)
def test_shape_change_gradient_equals_torch(
    op: str, symbolic: bool, check_gradients: Check
) -> None:
    initialiser, function = SHAPES[op]
    if symbolic and op == "Squeeze(x)":
        pytest.skip("which axes vanish depends on the symbolic lengths")
    shape = "A, 1, 4, B" if symbolic else "3, 1, 4, 6"
    check_gradients(
        model(f"(float[{shape}] x) => (float[] y) <{initialiser}> {{ y = {op} }}"),
        function,
        sizes={"A": 3, "B": 6},
    )


def test_computed_shapes_equal_torch(check_gradients: Check) -> None:
    check_gradients(
        model(
            "(float[A, B, 1] x, int64[3] r, int64[4] e) => (float[a, b, c, d] y) "
            "{ t = Tile(x, r) y = Expand(t, e) }"
        ),
        lambda x, r, e: x.repeat(*r.tolist()).expand(*e.tolist()),
        wrt=["x"],
        sizes={"A": 2, "B": 3},
        inputs={"r": np.array([1, 2, 1]), "e": np.array([4, 2, 6, 5])},
    )


def test_view_gradients_keep_nothing(check_gradients: Check) -> None:
    result = check_gradients(
        model(
            "(float[N, 3, 4, 4] x) => (float[] y) <int64[2] s = {0, -1}, int64[1] a = {1}> "
            "{ r = Reshape(x, s) u = Unsqueeze(r, a) y = Transpose<perm = [1, 2, 0]>(u) }"
        ),
        lambda x: x.reshape(x.shape[0], 1, -1).permute(1, 2, 0),
        sizes={"N": 2},
    )
    assert result.report.kept == ()


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_depth_to_space_gradient_equals_torch(
    mode: str, block: int, check_gradients: Check
) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        if mode == "CRD":
            return F.pixel_shuffle(x, block)
        n, c, h, w = x.shape
        depth = c // block**2
        y = x.reshape(n, block, block, depth, h, w).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, depth, h * block, w * block)

    channels = 2 * block * block
    check_gradients(
        model(
            f"(float[N, {channels}, H, 3] x) => (float[] y) "
            f'{{ y = DepthToSpace<blocksize = {block}, mode = "{mode}">(x) }}'
        ),
        function,
        sizes={"N": 2, "H": 2},
    )


def test_space_to_depth_gradient_equals_torch(check_gradients: Check) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return y.reshape(n, c * 4, h // 2, w // 2)

    check_gradients(
        model("(float[N, 3, 4, W] x) => (float[] y) { y = SpaceToDepth<blocksize = 2>(x) }"),
        function,
        sizes={"N": 2, "W": 6},
    )
