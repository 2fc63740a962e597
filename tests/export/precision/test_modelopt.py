"""int8 by NVIDIA's ModelOpt, where it is installed; what is said where it is not."""

from __future__ import annotations

from importlib import util

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser
from quantised_graphs import CLOSE, feeds, network, relative, run

from unblemish.errors import ConfigError, ModelError
from unblemish.export.precision.modelopt import place_by_modelopt, require_modelopt, with_shapes_of
from unblemish.export.precision.quantise import choose_nodes, quantise

WIDE = 8  # layers of few channels ModelOpt leaves alone


def test_without_it_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"nvidia-modelopt\[onnx\].*leave --quantiser out"):
        require_modelopt()
    with pytest.raises(ConfigError, match="ModelOpt is not installed"):
        quantise(network(), feeds(), by="modelopt")


def test_the_interface_is_that_of_the_graph_again() -> None:
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[batch,3] x) => (float[batch,3] y) { h = Relu(x) y = Relu(h) }""")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    fixed = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    made.graph.input[0].CopyFrom(fixed)
    made.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, 3]))
    found = with_shapes_of(made, model)
    assert found.graph.input[0] == model.graph.input[0]
    assert not found.graph.value_info


def test_it_gives_the_image_within_its_steps_for_any_batch() -> None:
    pytest.importorskip("modelopt")
    model = network(WIDE)
    result = quantise(model, feeds(), by="modelopt")
    assert result.changed == 2
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 9, 7)).astype(np.float32)
        expected = run(model, {"x": x})["y"]
        found = run(result.model, {"x": x})["y"]
        assert 0 < relative(found, expected) < CLOSE


def test_only_the_nodes_chosen_are_quantised_and_no_bias_is() -> None:
    pytest.importorskip("modelopt")
    chosen, _ = choose_nodes(network(WIDE))
    model = quantise(network(WIDE), feeds(), by="modelopt").model
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            by = [made[name].op_type for name in node.input if name in made]
            assert ("DequantizeLinear" in by) == (node.name in chosen)
    assert all(t.data_type != TensorProto.INT32 for t in model.graph.initializer)


def test_layers_that_it_leaves_alone_are_named() -> None:
    pytest.importorskip("modelopt")
    result = quantise(network(), feeds(), by="modelopt")
    assert result.changed == 0
    assert sum("left it in float32" in reason for reason in result.reasons) == 2


def test_what_it_cannot_quantise_is_an_error_in_one_line() -> None:
    pytest.importorskip("modelopt")
    with pytest.raises(ModelError, match=r"ModelOpt cannot quantise a graph: .*--quantiser"):
        place_by_modelopt(network(WIDE), ["Conv_2"], [{"other": np.zeros(3, np.float32)}])
