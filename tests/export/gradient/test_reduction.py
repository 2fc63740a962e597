"""Rules of `reduction.py`: against torch autograd, and against central differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import parser

Check = Callable[..., Any]


def model(text: str, opset: int = 21) -> onnx.ModelProto:
    """A graph in ONNX text; shapes of outputs that are written as [] are inferred."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
    for output in proto.graph.output:
        if not output.type.tensor_type.shape.dim:
            output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto)


def reduction(op: str, axes: str, settings: str, shape: str = "N, 3, 7") -> onnx.ModelProto:
    count = len(axes.split(",")) if axes else 0
    return model(
        f"(float[{shape}] x) => (float[] y) <int64[{count}] axes = {{{axes}}}> "
        f"{{ y = {op}<{settings}>(x, axes) }}"
    )


def product(x: torch.Tensor, dims: tuple[int, ...], keep: bool) -> torch.Tensor:
    for dim in sorted((d % x.dim() for d in dims), reverse=True):
        x = x.prod(dim, keep)
    return x


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "ReduceSum": lambda x, d, k: x.sum(d, k),
    "ReduceMean": lambda x, d, k: x.mean(d, k),
    "ReduceMax": lambda x, d, k: x.amax(d, k),
    "ReduceMin": lambda x, d, k: x.amin(d, k),
    "ReduceL1": lambda x, d, k: torch.linalg.vector_norm(x, 1, d, k),
    "ReduceL2": lambda x, d, k: torch.linalg.vector_norm(x, 2, d, k),
    "ReduceSumSquare": lambda x, d, k: (x * x).sum(d, k),
    "ReduceLogSumExp": lambda x, d, k: x.logsumexp(d, k),
    "ReduceProd": product,
}


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize(("axes", "keep"), [("1", 0), ("-1", 1), ("0, 2", 0), ("2, 0, 1", 0)])
def test_reduction_gradient_equals_torch(
    op: str, axes: str, keep: int, check_gradients: Check
) -> None:
    dims = tuple(int(a) for a in axes.split(","))
    check_gradients(
        reduction(op, axes, f"keepdims = {keep}"),
        lambda x: FUNCTIONS[op](x, dims, bool(keep)),
        sizes={"N": 5},
    )


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
def test_reduction_of_all_axes_equals_torch(op: str, keep: int, check_gradients: Check) -> None:
    check_gradients(
        model(f"(float[N, 1, 19] x) => (float[] y) {{ y = {op}<keepdims = {keep}>(x) }}"),
        lambda x: FUNCTIONS[op](x, (0, 1, 2), bool(keep)),
        sizes={"N": 2},
    )


@pytest.mark.parametrize("op", FUNCTIONS)
def test_reduction_with_axes_as_attribute_equals_torch(op: str, check_gradients: Check) -> None:
    check_gradients(
        model(
            f"(float[4, 3, 5] x) => (float[] y) {{ y = {op}<axes = [0, 2], keepdims = 0>(x) }}", 11
        ),
        lambda x: FUNCTIONS[op](x, (0, 2), False),
    )


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
def test_reduction_of_no_axes_passes_the_cotangent_on(op: str, check_gradients: Check) -> None:
    check_gradients(reduction(op, "", "noop_with_empty_axes = 1", "3, 5"), lambda x: x.clone())


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceProd"])
@pytest.mark.parametrize("keep", [0, 1])
def test_reduction_over_computed_axes_equals_torch(
    op: str, keep: int, check_gradients: Check
) -> None:
    shape = "a, b, c" if keep else "a"
    check_gradients(
        model(
            f"(float[2, 3, 5] x, int64[2] axes) => (float[{shape}] y) "
            f"{{ y = {op}<keepdims = {keep}>(x, axes) }}"
        ),
        lambda x, axes: FUNCTIONS[op](x, tuple(axes.tolist()), bool(keep)),
        wrt=["x"],
        inputs={"axes": np.array([2, 0])},
    )


def test_log_sum_gradient_equals_torch(check_gradients: Check, rng: np.random.Generator) -> None:
    check_gradients(
        reduction("ReduceLogSum", "1", "keepdims = 0"),
        lambda x: x.sum(1).log(),
        sizes={"N": 5},
        inputs={"x": rng.uniform(0.5, 2.0, (5, 3, 7)).astype(np.float32)},
    )


@pytest.mark.parametrize("zeros", [1, 2, 3])
def test_product_gradient_is_right_at_zeros(
    zeros: int, check_gradients: Check, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(4, 3, 3)).astype(np.float32)
    x[0, :zeros, 0] = 0.0
    x[2, 1, 2] = 0.0
    check_gradients(
        reduction("ReduceProd", "1", "keepdims = 0", "N, 3, 3"),
        lambda x: x.prod(1),
        sizes={"N": 4},
        inputs={"x": x},
    )


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extremum_gradient_is_shared_among_equals(op: str, check_gradients: Check) -> None:
    x = np.array([[1, 1, 0, 1], [2, 0, 0, 1]], np.float32)
    check_gradients(
        reduction(op, "1", "keepdims = 0", "2, 4"),
        lambda x: FUNCTIONS[op](x, (1,), False),
        inputs={"x": x},
        differences=False,  # not differentiable at a tie
    )


def test_l2_gradient_is_zero_at_zero(check_gradients: Check) -> None:
    x = np.array([[0, 0, 0], [3, 0, 4]], np.float32)
    check_gradients(
        reduction("ReduceL2", "1", "keepdims = 1", "2, 3"),
        lambda x: torch.linalg.vector_norm(x, 2, (1,), True),
        inputs={"x": x},
        differences=False,  # a cone at zero
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_gradient_equals_torch(op: str, axis: int, check_gradients: Check) -> None:
    function = torch.softmax if op == "Softmax" else torch.log_softmax
    check_gradients(
        model(f"(float[N, 3, 19] x) => (float[] y) {{ y = {op}<axis = {axis}>(x) }}"),
        lambda x: function(x, axis),
        sizes={"N": 2},
    )


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_before_opset_13_takes_the_axes_together(op: str, check_gradients: Check) -> None:
    function = torch.softmax if op == "Softmax" else torch.log_softmax
    check_gradients(
        model(f"(float[2, 3, 5] x) => (float[] y) {{ y = {op}<axis = 1>(x) }}", 11),
        lambda x: function(x.flatten(1), 1).reshape(x.shape),
    )


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_sum_gradient_equals_torch(
    exclusive: int, reverse: int, check_gradients: Check
) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        ordered = x.flip(1) if reverse else x
        total = ordered.cumsum(1) - (ordered if exclusive else 0)
        return total.flip(1) if reverse else total

    check_gradients(
        model(
            "(float[N, 7, 2] x) => (float[] y) <int64 axis = {1}> "
            f"{{ y = CumSum<exclusive = {exclusive}, reverse = {reverse}>(x, axis) }}"
        ),
        function,
        sizes={"N": 3},
    )


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize(("axis", "k"), [(1, 3), (-1, 1), (0, 2)])
def test_top_k_gradient_equals_torch(
    axis: int, k: int, largest: int, check_gradients: Check
) -> None:
    check_gradients(
        model(
            f"(float[N, 7, 5] x) => (float[] y, int64[] i) <int64[1] k = {{{k}}}> "
            f"{{ y, i = TopK<axis = {axis}, largest = {largest}>(x, k) }}"
        ),
        lambda x: x.topk(k, axis, bool(largest)).values,
        sizes={"N": 4},
    )
