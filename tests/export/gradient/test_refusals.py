"""What `differentiate` refuses, and that it says which node, name or file it was."""

from __future__ import annotations

import sys

import onnx
import pytest
import torch
from graph_texts import chain, parse
from onnx import TensorProto, helper, parser

from unblemish.errors import MissingDependencyError, ModelError, UnsupportedOperatorError
from unblemish.export import differentiate


def test_reserved_names_are_refused():
    with pytest.raises(ModelError, match="'ct_y'"):
        differentiate(parse("ct_y = Sin(x) y = Mul(ct_y, x)"))


@pytest.mark.parametrize(("wrt", "outputs", "pattern"), [
    (["q"], None, r"wrt=\['q'\].*\[x"), ([], None, "wrt"),
    (["x"], ["x"], r"outputs=\['x'\].*\[y\]"), (["i"], None, r"wrt=\['i'\]"),
])  # fmt: skip
def test_wrong_names_list_the_candidates(wrt, outputs, pattern):
    model = parse("f = Cast<to = 1>(i) y = Mul(x, f)", "float[3] x, int64[3] i")
    with pytest.raises(ModelError, match=pattern):
        differentiate(model, wrt, outputs)


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x0a\x12\x03abc"])
def test_files_that_are_no_models_are_refused(content, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        differentiate(path, wrt=["x"])


def test_cut_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "cut.onnx"
    data = chain().SerializeToString()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        differentiate(path, wrt=["x"])
    with pytest.raises(ModelError, match="no ONNX model at"):
        differentiate(tmp_path / "absent.onnx", wrt=["x"])


def test_missing_external_data_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save_model(
        chain(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="external data"):
        differentiate(path, wrt=["x"])
    with pytest.raises(ModelError, match="external data"):
        differentiate(onnx.load(path, load_external_data=False), wrt=["x"])


def test_control_flow_is_refused_by_name():
    branch = helper.make_graph(
        [helper.make_node("Sin", ["x"], ["s"])], "b", [],
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
         helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(UnsupportedOperatorError, match=r"'choice' \(If, opset 17\)"):
        differentiate(model, wrt=["x"])


def test_operators_without_a_rule_are_refused_by_name():
    with pytest.raises(UnsupportedOperatorError, match=r"Det, opset 21.*no gradient rule"):
        differentiate(parse("y = Det(x)", "float[2,3,3] x", "float[2] y"))


def test_operators_without_a_rule_are_accepted_off_the_path(check_gradients):
    model = parse("d = Det(m) y = Mul(x, d)", "float[2] x, float[2,3,3] m", "float[2] y")
    check_gradients(model, lambda x, m: x * torch.det(m), wrt=["x"], differences=False)


def test_foreign_operators_are_refused():
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "com.acme": 1]>
        g (float[3] x) => (float[3] y) { y = com.acme.Magic(x) }""")
    with pytest.raises(ModelError, match="Magic"):
        differentiate(model)


@pytest.mark.parametrize("opset", [8, 24])
def test_opsets_out_of_range_are_refused(opset):
    with pytest.raises(ModelError, match="opset 9 to 23"):
        differentiate(parse("y = Sin(x)", opset=opset))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="do not fit together"):
        differentiate(parse("y = MatMul(x, z)", "float[2,3] x, float[4,5] z", "float[2,5] y"))


def test_operands_that_cannot_be_broadcast_are_refused():
    with pytest.raises(ModelError, match="shape"):
        differentiate(parse("y = Add(x, z)", "float[3] x, float[4] z"))


def test_a_missing_optional_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(MissingDependencyError, match=r"networkx.*unblemish\[onnx\]"):
        differentiate(chain(), wrt=["x"])
