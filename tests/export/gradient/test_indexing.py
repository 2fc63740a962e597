"""Rules of `indexing.py`: against torch autograd, and against central differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import parser

from unblemish.errors import UnsupportedOperatorError
from unblemish.export import differentiate

Check = Callable[..., Any]


def model(text: str, opset: int = 21) -> onnx.ModelProto:
    """A graph in ONNX text; shapes of outputs that are written as [] are inferred."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
    for output in proto.graph.output:
        if not output.type.tensor_type.shape.dim:
            output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto)


def tensor(name: str, array: np.ndarray) -> str:
    dims = ", ".join(map(str, array.shape))
    values = ", ".join(map(str, array.reshape(-1).tolist()))
    return f"int64[{dims}] {name} = {{{values}}}" if dims else f"int64 {name} = {{{values}}}"


def operators(result: Any) -> list[str]:
    return [node.op_type for node in result.backward.graph.node]


INDICES = {
    "scalar": np.array(2),
    "permutation": np.array([3, 0, 4, 1, 2]),
    "distinct": np.array([4, -4]),
    "run": np.array([1, 2, 3]),
    "repeated": np.array([0, 3, 3, -1]),
    "matrix": np.array([[0, 1, 1], [4, 0, 2]]),
}


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", INDICES)
def test_gather_gradient_equals_torch(
    kind: str, axis: int, constant: bool, check_gradients: Check
) -> None:
    index = INDICES[kind]
    shape = ["N", "3", "2"]
    shape[axis] = "5"

    def function(x: torch.Tensor, i: torch.Tensor | None = None) -> torch.Tensor:
        wrapped = torch.from_numpy(np.where(index < 0, index + 5, index))
        rows = x.index_select(axis, wrapped.reshape(-1))
        return rows.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])

    dims = ", ".join(map(str, index.shape))
    given = "" if constant else f", int64{f'[{dims}]' if dims else ''} i"
    held = f"<{tensor('i', index)}>" if constant else ""
    check_gradients(
        model(
            f"(float[{', '.join(shape)}] x{given}) => (float[] y) {held} "
            f"{{ y = Gather<axis = {axis}>(x, i) }}"
        ),
        function,
        wrt=["x"],
        sizes={"N": 4},
        inputs={} if constant else {"i": index},
    )


def test_gather_of_distinct_constants_scatters_nothing(check_gradients: Check) -> None:
    result = check_gradients(
        model(
            f"(float[N, 5] x) => (float[] y) <{tensor('i', np.array([3, 0, 4, 1, 2]))}> "
            "{ y = Gather<axis = 1>(x, i) }"
        ),
        lambda x: x[:, [3, 0, 4, 1, 2]],
        sizes={"N": 2},
    )
    assert operators(result) == ["Gather"]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements_gradient_equals_torch(axis: int, check_gradients: Check) -> None:
    rng = np.random.default_rng(3)
    index = rng.integers(-4, 4, (3, 2, 4))
    shape = [4, 4, 4]
    check_gradients(
        model(
            f"(float{shape} x, int64[3, 2, 4] i) => (float[] y) "
            f"{{ y = GatherElements<axis = {axis}>(x, i) }}"
        ),
        lambda x, i: x.gather(axis, torch.where(i < 0, i + 4, i)),
        wrt=["x"],
        inputs={"i": index},
    )


def test_gather_nd_gradient_equals_torch(check_gradients: Check) -> None:
    index = np.array([[[0, 1], [3, -1]], [[0, 1], [2, 2]]])
    check_gradients(
        model("(float[4, 3, N] x, int64[2, 2, 2] i) => (float[] y) { y = GatherND(x, i) }"),
        lambda x, i: x[i[..., 0], i[..., 1]],
        wrt=["x"],
        sizes={"N": 5},
        inputs={"i": index},
    )


@pytest.mark.parametrize("symbolic", [False, True])
def test_gather_nd_with_batch_equals_torch(symbolic: bool, check_gradients: Check) -> None:
    index = np.array([[[1], [1], [0]], [[2], [0], [3]]])
    n = "N" if symbolic else "2"
    check_gradients(
        model(
            f"(float[{n}, 4, 3] x, int64[{n}, 3, 1] i) => (float[] y) "
            "{ y = GatherND<batch_dims = 1>(x, i) }"
        ),
        lambda x, i: x.gather(1, i.expand(-1, -1, 3)),
        wrt=["x"],
        sizes={"N": 2},
        inputs={"i": index},
    )


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_elements_gradient_equals_torch(
    axis: int, reduction: str, check_gradients: Check
) -> None:
    index = np.array([[0, 2, 1], [3, 0, 2]]) if axis == 0 else np.array([[0, 2, 1], [2, 0, 1]])

    def function(x: torch.Tensor, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return x.scatter(axis, i, u) if reduction == "none" else x.scatter_add(axis, i, u)

    check_gradients(
        model(
            "(float[4, 3] x, float[2, 3] u, int64[2, 3] i) => (float[] y) "
            f'{{ y = ScatterElements<axis = {axis}, reduction = "{reduction}">(x, i, u) }}'
        ),
        function,
        inputs={"i": index},
    )


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_nd_gradient_equals_torch(reduction: str, check_gradients: Check) -> None:
    index = np.array([[0, 1], [3, 2]])
    check_gradients(
        model(
            "(float[4, 3, 2] x, float[2, 2] u, int64[2, 2] i) => (float[] y) "
            f'{{ y = ScatterND<reduction = "{reduction}">(x, i, u) }}'
        ),
        lambda x, u, i: x.index_put((i[:, 0], i[:, 1]), u, accumulate=reduction == "add"),
        inputs={"i": index},
    )


def test_scatter_with_other_reductions_is_refused() -> None:
    text = (
        "(float[4] x, float[2] u, int64[2] i) => (float[] y) "
        '{ y = ScatterElements<reduction = "mul">(x, i, u) }'
    )
    with pytest.raises(UnsupportedOperatorError, match="reduction 'mul'"):
        differentiate(model(text), ["x"])


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_compress_gradient_equals_torch(axis: int | None, check_gradients: Check) -> None:
    condition = np.array([True, False, True])
    attribute = "" if axis is None else f"<axis = {axis}>"
    shape = "a" if axis is None else "a, b"

    def function(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        places = c.nonzero().reshape(-1)
        return x.reshape(-1)[places] if axis is None else x.index_select(axis, places)

    check_gradients(
        model(
            f"(float[3, 4] x, bool[3] c) => (float[{shape}] y) {{ y = Compress{attribute}(x, c) }}"
        ),
        function,
        wrt=["x"],
        inputs={"c": condition},
    )


@pytest.mark.parametrize(
    "op",
    [
        "Floor(x)",
        "Ceil(x)",
        "Round(x)",
        "Sign(x)",
        "ConstantOfShape<value = float[1] {2.0}>(n)",
        "Cast<to = 1>(i)",
    ],
)
def test_steps_and_indices_carry_no_gradient(op: str, check_gradients: Check) -> None:
    result = check_gradients(
        model(
            "(float[3, 5] x) => (float[] y) { n = Shape(x) i = ArgMax<axis = 1>(x) "
            f"z = {op} w = ReduceMax(z) y = Add(x, w) }}"
        ),
        differences=op != "Cast<to = 1>(i)",
    )
    assert set(operators(result)) <= {"Identity"}
