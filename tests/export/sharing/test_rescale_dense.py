"""Dense layers made out of another layer's weight: when, and that they compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from unblemish.export.sharing.rescale_dense import rescale_dense
from unblemish.export.sharing.share_weights import share_weights
from unblemish.runtime.backends import open_backend

Float = NDArray[np.float32]
ENGINES = ("onnxruntime", "openvino", "torch")
COLUMNS = 5
# float32 sums of at most 8 products, in another order of multiplications
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def _dense(
    weight: Float, flipped: bool = False, bias: bool = True, **more: float
) -> onnx.ModelProto:
    names = ["x", "w", "b"][: 2 + bias]
    node = helper.make_node("Gemm", names, ["y"], transB=int(flipped), **more)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", None]) for n in "xy"]
    outputs = weight.shape[0 if flipped else 1]
    values = {"w": weight, "b": np.arange(outputs, dtype=np.float32)}
    held = [numpy_helper.from_array(np.ascontiguousarray(values[n]), n) for n in names[1:]]
    graph = helper.make_graph([node], "dense", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def basis(rng: np.random.Generator) -> Float:
    """Columns to draw with, (8, 5)."""
    return rng.standard_normal((8, COLUMNS)).astype(np.float32)


@pytest.fixture
def scale(rng: np.random.Generator) -> Float:
    return rng.uniform(0.01, 3, COLUMNS).astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("encoder_flipped", [True, False])
@pytest.mark.parametrize("decoder_flipped", [True, False])
def test_a_scaled_layer_reads_the_other_weight_and_computes_the_same(
    basis: Float, scale: Float, tmp_path: Path, rng: np.random.Generator,
    engine: str, bias: bool, encoder_flipped: bool, decoder_flipped: bool,
) -> None:  # fmt: skip
    pytest.importorskip(engine)
    stored, projected = basis if decoder_flipped else basis.T, basis * scale
    encoder = _dense(projected.T if encoder_flipped else projected, encoder_flipped, bias)
    graphs = {"decoder": _dense(stored, decoder_flipped), "encoder": encoder}
    made = rescale_dense(graphs, least=64)
    onnx.checker.check_model(made["encoder"], full_check=True)
    assert made["decoder"] is graphs["decoder"]
    assert share_weights(made, least=64).data == np.ascontiguousarray(stored).tobytes()

    path = tmp_path / "encoder.onnx"
    path.write_bytes(made["encoder"].SerializeToString())
    x = rng.standard_normal((3, 8)).astype(np.float32)
    expected = x @ projected + (np.arange(COLUMNS) if bias else 0)
    found = open_backend(engine, 1).program(str(path)).run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, **CLOSE)  # type: ignore[arg-type]


def _refused(basis: Float, encoder: onnx.ModelProto, least: int = 64) -> bool:
    graphs = {"decoder": _dense(basis, flipped=True), "encoder": encoder}
    return rescale_dense(graphs, least) == graphs


def test_layers_that_are_no_multiples_stay(basis: Float, scale: Float) -> None:
    scaled = basis * scale
    assert not _refused(basis, _dense(scaled))
    changed = scaled.copy()
    changed[3, 2] *= 1.00001
    assert _refused(basis, _dense(changed))
    assert _refused(basis, _dense(scaled, alpha=2.0))
    assert _refused(basis, _dense(scaled), least=scaled.nbytes + 1)
    assert _refused(basis, _dense(basis))  # equal already: one copy without any of this
    assert _refused(basis * np.float32(0), _dense(scaled))


def test_columns_of_zeros_are_multiples_of_each_other(basis: Float, scale: Float) -> None:
    unused = basis * (np.arange(COLUMNS) < 3)
    assert not _refused(unused.astype(np.float32), _dense((unused * scale).astype(np.float32)))
    assert _refused(unused.astype(np.float32), _dense(basis * scale))


def test_a_weight_that_others_read_stays(basis: Float, scale: Float) -> None:
    encoder = _dense(basis * scale)
    encoder.graph.node.append(helper.make_node("Identity", ["w"], ["copy"]))
    assert _refused(basis, encoder)


def test_a_weight_that_may_be_fed_stays(basis: Float, scale: Float) -> None:
    encoder = _dense(basis * scale)
    encoder.graph.input.append(
        helper.make_tensor_value_info("w", TensorProto.FLOAT, list(basis.shape))
    )
    assert _refused(basis, encoder)
