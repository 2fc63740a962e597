"""Symbolic multiples against the standard's formulas at many sizes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from unblemish.export.gradient.sizes import difference, multiple, sizes_behind

WINDOWS = list(itertools.product((1, 2, 3, 5, 7), (1, 2, 3), (0, 1, 2, 3), (1, 2)))


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "ConvTranspose"])
def test_multiples_agree_with_the_engine_wherever_they_are_claimed(op: str) -> None:
    claimed = 0
    for kernel, stride, pad, dilation in WINDOWS:
        extent = (kernel - 1) * dilation + 1
        if pad >= extent:
            continue  # engines refuse pools whose pads reach over the kernel
        node = helper.make_node(
            op, ["x"] if op == "MaxPool" else ["x", "w"], ["y"],
            kernel_shape=[kernel], strides=[stride], pads=[pad, pad], dilations=[dilation],
        )  # fmt: skip
        found = sizes_behind(node, ("n", 1, "6*h"), (kernel,), None)
        if found is None or found[0] is None:
            continue
        claimed += 1
        made = multiple(found[0])
        assert made is not None
        for times in (2, 3, 5):
            assert _engine_size(node, 6 * times, kernel) == made.factor * times
    assert claimed > 5


@pytest.mark.parametrize(
    ("scale", "expected"), [(2.0, "12*h"), (0.5, "3*h"), (0.25, None), (1.5, None), (1 / 6, "h")]
)
def test_resize_scales_what_divides(scale: float, expected: str | None) -> None:
    node = helper.make_node("Resize", ["x", "", "s"], ["y"])
    assert sizes_behind(node, ("n", 1, "6*h"), (), [1, 1, scale]) == (expected,)


def test_difference_is_known_for_numbers_and_like_multiples_only() -> None:
    assert difference(5, 2, 9) == 1
    assert difference("4*h", 2, "8*h") == 0
    assert difference("4*h", 2, "8*w") is None
    assert difference("4*h", 2, 8) is None
    assert difference(None, 1, None) is None


def _engine_size(node: onnx.NodeProto, size: int, kernel: int) -> int:
    shape = [1, 1, size]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, None])
    w = onnx.numpy_helper.from_array(np.ones((1, 1, kernel), np.float32), "w")
    graph = helper.make_graph([node], "g", [x], [y], [w] if len(node.input) > 1 else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return int(session.run(None, {"x": np.zeros(shape, np.float32)})[0].shape[2])
