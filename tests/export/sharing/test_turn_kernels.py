"""Turned kernels made of those they came from: when they are, and that the numbers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from unblemish.export.sharing.share_weights import share_weights
from unblemish.export.sharing.turn_kernels import turn_kernels, turned
from unblemish.runtime.backends import open_backend

Float = NDArray[np.float32]
ENGINES = ("onnxruntime", "openvino", "torch")


def _conv(kernel: Float) -> onnx.ModelProto:
    shapes = {"x": ["n", kernel.shape[1], 6, 6], "y": ["n", kernel.shape[0], 6, 6]}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    node = helper.make_node("Conv", ["x", "k"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "conv", [x], [y], [numpy_helper.from_array(kernel, "k")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def kernel(rng: np.random.Generator) -> Float:
    return rng.standard_normal((4, 3, 3, 3)).astype(np.float32)


def test_turning_is_the_adjoint_of_a_convolution(kernel: Float, rng: np.random.Generator) -> None:
    def conv(k: Float, x: Float) -> Float:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        return np.einsum("oiuv,ihwuv->ohw", k, windows)

    x, c = rng.standard_normal((3, 5, 7)), rng.standard_normal((4, 5, 7))
    # <k * x, c> = <x, k' * c>; float64 rounding
    np.testing.assert_allclose(
        (conv(kernel, x) * c).sum(), (x * conv(turned(kernel), c)).sum(), rtol=1e-10
    )


def test_a_turned_kernel_needs_no_copy(kernel: Float) -> None:
    graphs = {"there": _conv(kernel), "back": _conv(turned(kernel))}
    assert len(share_weights(graphs, least=64).data) > 2 * kernel.nbytes
    made = turn_kernels(graphs, least=64)
    assert made["there"] is graphs["there"]
    assert [node.op_type for node in made["back"].graph.node] == ["Transpose", "Slice", "Conv"]
    assert share_weights(made, least=64).data == kernel.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_give_the_same_numbers(
    kernel: Float, tmp_path: Path, engine: str, rng: np.random.Generator
) -> None:
    pytest.importorskip(engine)
    graphs = {"there": _conv(kernel), "back": _conv(turned(kernel))}
    made = turn_kernels(graphs, least=64)["back"]
    onnx.checker.check_model(made, full_check=True)
    x = rng.standard_normal((2, 4, 6, 6)).astype(np.float32)
    found = []
    for name, model in (("plain", graphs["back"]), ("made", made)):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        found.append(open_backend(engine, 1).program(str(path)).run({"x": x})["y"].copy())
    np.testing.assert_array_equal(found[1], found[0])  # the same kernel, to the bit


def test_other_kernels_stay_as_they_are(kernel: Float) -> None:
    almost = turned(kernel)
    almost[0, 0, 0, 0] += 1e-6
    graphs = {"there": _conv(kernel), "again": _conv(kernel), "other": _conv(almost)}
    assert turn_kernels(graphs, least=64) == graphs
    small = {"there": _conv(kernel), "back": _conv(turned(kernel))}
    assert turn_kernels(small, least=kernel.nbytes + 1) == small


def test_a_kernel_that_may_be_fed_stays(kernel: Float) -> None:
    free = _conv(turned(kernel))
    free.graph.input.append(
        helper.make_tensor_value_info("k", TensorProto.FLOAT, list(turned(kernel).shape))
    )
    graphs = {"there": _conv(kernel), "back": free}
    assert turn_kernels(graphs, least=64) == graphs
