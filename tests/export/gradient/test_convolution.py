"""Rules of `convolution.py`: every rank, stride, dilation, group and pad; never unrolled."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, parser

from unblemish.errors import UnsupportedOperatorError
from unblemish.export import differentiate

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_T = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def model(op: str, x: list, w: list[int], *, bias: int = 0, **attributes) -> onnx.ModelProto:
    """One convolution whose kernel (and bias) are inputs."""
    tensors = {"x": x, "w": w} | ({"b": [bias]} if bias else {})
    node = helper.make_node(op, list(tensors), ["y"], **attributes)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in tensors.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"y{i}" for i in range(len(x))])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def padded(x: torch.Tensor, pads: list[int]) -> torch.Tensor:
    """Zero pads in ONNX's order (begins, then ends)."""
    rank = len(pads) // 2
    order = [p for axis in reversed(range(rank)) for p in (pads[axis], pads[rank + axis])]
    return F.pad(x, order)


# spatial size, kernel, stride, dilation, pads, group, batch
CASES = [
    ([19], [3], 1, 1, [1, 1], 1, 3),
    ([19], [4], 3, 2, [2, 0], 2, 1),
    ([1], [1], 1, 1, [0, 0], 1, 1),
    ([9, 7], [3, 3], [1, 1], 1, [1, 1, 1, 1], 1, 3),
    ([9, 7], [3, 2], [1, 1], 1, [0, 1, 2, 0], 2, 1),
    ([9, 8], [3, 3], [2, 2], 1, [1, 1, 1, 1], 1, 3),
    ([10, 9], [3, 3], [2, 3], [2, 1], [2, 1, 1, 0], 4, 2),
    ([11, 6], [4, 4], [2, 2], 1, [1, 1, 1, 1], 2, 1),
    ([5, 5], [1, 1], [2, 2], 1, [0, 0, 0, 0], 1, 2),
    ([6, 6], [2, 2], [3, 3], 1, [0, 0, 0, 0], 1, 2),
    ([5, 5], [2, 2], [1, 1], 1, [3, 2, 2, 3], 1, 1),
    ([5, 4, 6], [3, 2, 3], [1, 1, 1], 1, [1, 0, 1, 1, 1, 0], 1, 2),
    ([6, 5, 7], [2, 3, 2], [2, 1, 3], [1, 2, 1], [1, 1, 0, 1, 1, 1], 2, 1),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "dilation", "pads", "group", "batch"), CASES)
@pytest.mark.parametrize("symbolic", [False, True])
def test_conv_gradient_equals_torch(
    size, kernel, stride, dilation, pads, group, batch, symbolic, check_gradients
):
    rank = len(size)
    strides = [stride] * rank if isinstance(stride, int) else stride
    dilations = [dilation] * rank if isinstance(dilation, int) else dilation
    names = [f"s{i}" for i in range(rank)]
    x = ["N", 4, *names] if symbolic else [batch, 4, *size]
    proto = model("Conv", x, [8, 4 // group, *kernel], bias=8, strides=strides, pads=pads,
                  dilations=dilations, group=group, kernel_shape=kernel)  # fmt: skip
    result = check_gradients(
        proto,
        lambda x, w, b: CONV[rank](padded(x, pads), w, b, strides, 0, dilations, group),
        sizes=dict(zip(names, size, strict=True), N=batch),
    )
    used = Counter(n.op_type for n in result.fused.graph.node)
    assert "MatMul" not in used
    assert "Gemm" not in used
    assert used["Conv"] + used["ConvTranspose"] == 3


def check_bilinear(proto: onnx.ModelProto, x: list[int], w: list[int]) -> None:
    """f is linear in x and in w: f(x + v) − f(x) = f(v) is exact, and ⟨ct, f(v)⟩ = ⟨grad, v⟩."""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal(x).astype("f"), "w": rng.standard_normal(w).astype("f")}
    result = differentiate(proto)
    value = run(proto, feeds)["y"]
    ct = rng.standard_normal(value.shape).astype("f")
    grads = run(result.fused, {**feeds, "ct_y": ct})
    for name in feeds:
        direction = rng.standard_normal(feeds[name].shape).astype("f")
        change = run(proto, {**feeds, name: direction})["y"]
        np.testing.assert_allclose(
            np.vdot(grads[f"grad_{name}"], direction), np.vdot(ct, change), rtol=1e-3, atol=1e-3
        )


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString())
    names = [o.name for o in model.graph.output]
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_conv_gradient_is_the_adjoint_when_pads_are_automatic(mode, stride):
    proto = model("Conv", [2, 3, 8, 7], [4, 3, 4, 3], auto_pad=mode, strides=[stride, stride])
    check_bilinear(proto, [2, 3, 8, 7], [4, 3, 4, 3])


def test_conv_gradient_with_same_pads_and_a_stride_is_refused_when_sizes_are_symbolic():
    proto = model("Conv", ["N", 3, "H", "W"], [4, 3, 3, 3], auto_pad="SAME_UPPER", strides=[2, 2])
    with pytest.raises(UnsupportedOperatorError, match=r"Conv, opset 21.*static spatial"):
        differentiate(proto)


def test_conv_gradient_has_one_conv_and_no_flip_when_the_kernel_is_constant():
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[N,1,8,8] x) => (float[N,1,8,8] y)
      <float[1,1,3,3] w = {1,2,3,4,5,6,7,8,9}> { y = Conv<pads = [1,1,1,1]>(x, w) }"""
    backward = differentiate(parser.parse_model(text)).backward
    assert [n.op_type for n in backward.graph.node] == ["Conv"]
    kernel = onnx.numpy_helper.to_array(backward.graph.initializer[0])
    assert kernel.ravel().tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1]


# size, kernel, stride, dilation, pads, output padding, group, batch
CASES_T = [
    ([19], [3], [1], [1], [1, 1], [0], 1, 3),
    ([7], [4], [3], [2], [1, 1], [2], 2, 1),
    ([5, 7], [4, 4], [2, 2], [1, 1], [1, 1, 1, 1], [0, 0], 1, 3),
    ([5, 7], [3, 3], [2, 2], [1, 1], [1, 1, 1, 1], [1, 1], 2, 1),
    ([4, 3], [3, 2], [3, 2], [2, 1], [0, 0, 0, 0], [2, 1], 4, 2),
    ([4, 4], [3, 3], [1, 1], [2, 2], [2, 1, 2, 1], [0, 0], 1, 1),
    ([1, 1], [4, 4], [1, 1], [1, 1], [0, 0, 0, 0], [0, 0], 1, 2),
    ([3, 4, 2], [3, 2, 3], [2, 1, 2], [1, 1, 1], [1, 0, 1, 1, 0, 1], [1, 0, 1], 2, 2),
]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "pads", "extra", "group", "batch"), CASES_T
)
@pytest.mark.parametrize("symbolic", [False, True])
def test_conv_transpose_gradient_equals_torch(
    size, kernel, stride, dilation, pads, extra, group, batch, symbolic, check_gradients
):
    rank = len(size)
    names = [f"s{i}" for i in range(rank)]
    x = ["N", 4, *names] if symbolic else [batch, 4, *size]
    proto = model("ConvTranspose", x, [4, 6 // group if 6 % group == 0 else 2, *kernel],
                  bias=6 if 6 % group == 0 else 2 * group, strides=stride, pads=pads,
                  dilations=dilation, output_padding=extra, group=group)  # fmt: skip
    result = check_gradients(
        proto,
        lambda x, w, b: CONV_T[rank](x, w, b, stride, pads[:rank], extra, group, dilation),
        sizes=dict(zip(names, size, strict=True), N=batch),
    )
    used = Counter(n.op_type for n in result.fused.graph.node)
    assert used["Conv"] + used["ConvTranspose"] == 3


@pytest.mark.parametrize("attributes", [
    {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"},
    {"output_shape": [9, 13]}, {"output_shape": [10, 14], "auto_pad": "SAME_UPPER"},
    {"output_shape": [10, 12]},
])  # fmt: skip
def test_conv_transpose_gradient_is_the_adjoint_when_pads_are_derived(attributes):
    proto = model("ConvTranspose", [2, 3, 5, 7], [3, 2, 3, 4], strides=[2, 2], **attributes)
    check_bilinear(proto, [2, 3, 5, 7], [3, 2, 3, 4])
