"""Rules of `pooling.py`: overlapping windows, pads, dilation, ceiling."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import parser
from onnx.reference import ReferenceEvaluator

from unblemish.export import differentiate

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def pool(op: str, x: str, **attributes) -> str:
    rank = x.count(",") + 1
    text = ", ".join(f"{k} = {v}" for k, v in attributes.items())
    y = ",".join(f"y{i}" for i in range(rank))
    return f"{HEAD} g (float[{x}] x) => (float[{y}] y) {{ y = {op}<{text}>(x) }}"


def shape_text(size: list[int], symbolic: bool, batch: int = 2) -> str:
    space = [f"s{i}" for i in range(len(size))] if symbolic else map(str, size)
    return ",".join(["N" if symbolic else str(batch), "3", *space])


def sizes_of(size: list[int], batch: int = 2) -> dict[str, int]:
    return {f"s{i}": s for i, s in enumerate(size)} | {"N": batch}


# size, kernel, stride, pad, dilation, ceil
MAX_CASES = [
    ([19], 3, 2, 1, 1, 0), ([8, 8], 2, 2, 0, 1, 0), ([9, 7], 3, 2, 1, 1, 0),
    ([9, 7], 3, 1, 1, 1, 0), ([9, 8], 3, 2, 0, 1, 1), ([11, 9], 2, 2, 0, 3, 0),
    ([10, 9], 3, 2, 1, 2, 1), ([5, 6, 4], 3, 2, 1, 1, 0), ([1, 1], 1, 1, 0, 1, 0),
]  # fmt: skip


@pytest.mark.parametrize(("size", "kernel", "stride", "pad", "dilation", "ceil"), MAX_CASES)
@pytest.mark.parametrize("symbolic", [False, True])
def test_max_pool_gradient_equals_torch(
    size, kernel, stride, pad, dilation, ceil, symbolic, check_gradients
):
    rank = len(size)
    model = pool("MaxPool", shape_text(size, symbolic), kernel_shape=[kernel] * rank,
                 strides=[stride] * rank, pads=[pad] * 2 * rank, dilations=[dilation] * rank,
                 ceil_mode=ceil)  # fmt: skip
    check_gradients(
        model, lambda x: MAX[rank](x, kernel, stride, pad, dilation, ceil_mode=bool(ceil)),
        sizes=sizes_of(size),
    )  # fmt: skip


def test_max_pool_gradient_goes_to_the_first_maximum_when_elements_tie():
    model = pool("MaxPool", "1,1,2,2", kernel_shape=[2, 2])
    fused = differentiate(parser.parse_model(model)).fused
    feeds = {"x": np.ones((1, 1, 2, 2), "f"), "ct_y": np.full((1, 1, 1, 1), 4, "f")}
    grad = ReferenceEvaluator(fused).run(["grad_x"], feeds)[0]
    assert grad.ravel().tolist() == [4, 0, 0, 0]


def test_max_pool_gradient_equals_torch_when_most_elements_tie():
    model = pool("MaxPool", "2,3,9,8", kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 1, 1])
    fused = differentiate(parser.parse_model(model)).fused
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (2, 3, 9, 8)).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    y = F.max_pool2d(leaf, 3, (2, 1), 1)
    ct = rng.standard_normal(y.shape).astype(np.float32)
    y.backward(torch.tensor(ct))
    session = ort.InferenceSession(fused.SerializeToString())
    grad = session.run(["grad_x"], {"x": x, "ct_y": ct})[0]
    np.testing.assert_allclose(grad, leaf.grad, atol=1e-6)


def test_max_pool_gradient_needs_no_indices_and_no_scatter():
    model = pool("MaxPool", "N,3,9,9", kernel_shape=[3, 3], strides=[2, 2])
    fused = differentiate(parser.parse_model(model)).fused
    used = {n.op_type for n in fused.graph.node}
    assert not used & {"ScatterElements", "ScatterND", "MaxUnpool"}
    assert all(len(n.output) == 1 for n in fused.graph.node)


# size, kernel, stride, pad, ceil, count_include_pad
MEAN_CASES = [
    ([19], 3, 2, 1, 0, 0), ([8, 8], 2, 2, 0, 0, 0), ([9, 7], 2, 2, 0, 0, 0),
    ([9, 7], 3, 2, 1, 0, 0), ([9, 7], 3, 2, 1, 0, 1), ([9, 8], 3, 1, 1, 0, 1),
    ([9, 8], 3, 2, 0, 1, 0), ([10, 8], 3, 2, 1, 1, 1), ([10, 8], 3, 2, 1, 1, 0),
    ([5, 6, 4], 3, 2, 1, 0, 0),
    ([1, 1], 1, 1, 0, 0, 0), ([7, 7], 1, 3, 0, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("size", "kernel", "stride", "pad", "ceil", "include"), MEAN_CASES)
@pytest.mark.parametrize("symbolic", [False, True])
def test_average_pool_gradient_equals_torch(
    size, kernel, stride, pad, ceil, include, symbolic, check_gradients
):
    rank = len(size)
    model = pool("AveragePool", shape_text(size, symbolic), kernel_shape=[kernel] * rank,
                 strides=[stride] * rank, pads=[pad] * 2 * rank, ceil_mode=ceil,
                 count_include_pad=include)  # fmt: skip
    check_gradients(
        model,
        lambda x: MEAN[rank](
            x, kernel, stride, pad, ceil_mode=bool(ceil), count_include_pad=bool(include)
        ),
        sizes=sizes_of(size),
    )


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["AveragePool", "MaxPool", "LpPool"])
def test_pool_gradient_passes_central_differences_when_pads_are_automatic(
    op, mode, check_gradients
):
    model = pool(op, "2,3,8,7", kernel_shape=[3, 2], strides=[2, 2], auto_pad=f'"{mode}"')
    check_gradients(model)


def test_average_pool_gradient_passes_central_differences_when_dilated(check_gradients):
    check_gradients(
        pool("AveragePool", "2,3,9,8", kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 0, 1, 1])
    )


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("symbolic", [False, True])
def test_lp_pool_gradient_equals_torch(p, symbolic, check_gradients):
    model = pool("LpPool", shape_text([9, 7], symbolic), kernel_shape=[3, 2], strides=[2, 1], p=p)

    def function(x):
        power = x.abs() ** p
        return (F.avg_pool2d(power, (3, 2), (2, 1)) * 6) ** (1 / p)

    check_gradients(model, function, sizes=sizes_of([9, 7]))


@pytest.mark.parametrize(("op", "function"), [
    ("GlobalAveragePool", lambda x: x.mean((2, 3), keepdim=True)),
    ("GlobalMaxPool", lambda x: x.amax((2, 3), keepdim=True)),
    ("GlobalLpPool", lambda x: (x**2).sum((2, 3), keepdim=True).sqrt()),
])  # fmt: skip
@pytest.mark.parametrize("symbolic", [False, True])
def test_global_pool_gradient_equals_torch(op, function, symbolic, check_gradients):
    x = shape_text([9, 7], symbolic)
    model = f"{HEAD} g (float[{x}] x) => (float[n,c,1,1] y) {{ y = {op}(x) }}"
    # No float64 implementation of GlobalLpPool is at hand.
    check_gradients(
        model, lambda x: function(x), sizes=sizes_of([9, 7]), differences=op != "GlobalLpPool"
    )
