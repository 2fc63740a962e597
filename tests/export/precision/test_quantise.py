"""int8 by Q/DQ nodes: what is quantised, how well, and what the way back is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from quantised_graphs import CLOSE, feeds, network, relative, run

from unblemish.errors import CalibrationError
from unblemish.export import differentiate
from unblemish.export.passes import count_operators, optimise
from unblemish.export.precision.quantise import choose_nodes, quantise


def test_quantise_gives_the_image_within_its_steps() -> None:
    result = quantise(network(), feeds())
    assert result.changed == 2
    assert count_operators(result.model)["QuantizeLinear"] >= 2
    onnx.checker.check_model(result.model)
    (new,) = feeds(1, seed=2)
    found, expected = run(result.model, new)["y"], run(network(), new)["y"]
    assert 1e-4 < relative(found, expected) < CLOSE


def test_quantised_weights_are_symmetric_bytes_by_channel() -> None:
    model = quantise(network(), feeds()).model
    stored = {t.name: t for t in model.graph.initializer}
    weights = [t for t in stored.values() if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    assert [list(t.dims) for t in weights] == [[5, 6, 3, 3], [4, 5, 3, 3]]
    points = [n.input[2] for n in model.graph.node if n.op_type == "DequantizeLinear"]
    for name in points:
        assert not numpy_helper.to_array(stored[name]).any()


def test_quantise_leaves_the_first_and_the_last_operator_alone() -> None:
    model = network()
    chosen, reasons = choose_nodes(model)
    heavy = [node for node in model.graph.node if node.op_type == "Conv"]
    assert chosen == [heavy[1].name, heavy[2].name]
    assert len(reasons) == 2
    assert all("first or last" in reason for reason in reasons)


def test_fused_graph_goes_back_through_the_unquantised_weights() -> None:
    """Straight-through: no node that depends on a cotangent has a quantised operand."""
    plain = optimise(network())
    ways = differentiate(plain, ["x"])
    rng = np.random.default_rng(3)
    ct = rng.standard_normal((2, 2, 9, 7)).astype(np.float32)
    result = quantise(ways.fused, [{**feed, "ct_y": ct} for feed in feeds()])
    assert result.changed == 2
    behind = {"ct_y"}
    for node in result.model.graph.node:
        if behind.intersection(node.input):
            assert node.op_type not in ("QuantizeLinear", "DequantizeLinear")
            behind |= set(node.output)
    (new,) = feeds(1, seed=2)
    given = {**new, "ct_y": ct}
    # The slopes of ReLUs that the quantised values put on the other side differ: few do.
    found, expected = run(result.model, given)["grad_x"], run(ways.fused, given)["grad_x"]
    assert relative(found, expected) < 0.3


def test_backward_graph_stays_as_it_is() -> None:
    backward = differentiate(optimise(network()), ["x"]).backward
    result = quantise(backward, [])
    assert result.changed == 0
    assert "nothing heavy" in result.reasons[-1]


def test_quantise_without_biases_keeps_them_float32() -> None:
    """TensorRT refuses biases of 32-bit integers."""
    model = quantise(network(), feeds(), biases=False).model
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) == 1 and t.dims[0] > 1}
    assert TensorProto.INT32 not in kinds
    assert TensorProto.INT32 in {
        t.data_type for t in quantise(network(), feeds()).model.graph.initializer
    }


def test_quantise_without_feeds_is_refused() -> None:
    with pytest.raises(CalibrationError, match="--normals"):
        quantise(network(), [])
