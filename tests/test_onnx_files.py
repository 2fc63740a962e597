"""Reading graphs whose weights lie beside them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from unblemish.errors import ModelError
from unblemish.onnx_files import external_tensors, read_onnx

VALUES = np.arange(6, dtype=np.float32)


def _save(folder: Path, location: str = "weights.bin", offset: int = 8) -> Path:
    tensor = TensorProto(
        name="w", dims=[2, 3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", offset), ("length", 24)):
        tensor.external_data.add(key=key, value=str(value))
    graph = helper.make_graph([], "g", [], [], [tensor])
    path = folder / "g.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    (folder / "weights.bin").write_bytes(bytes(8) + VALUES.tobytes())
    return path


def test_values_are_read_from_their_place(tmp_path: Path) -> None:
    model = read_onnx(_save(tmp_path))
    np.testing.assert_array_equal(
        numpy_helper.to_array(model.graph.initializer[0]), VALUES.reshape(2, 3)
    )
    assert external_tensors(model) == []
    assert model == onnx.load(tmp_path / "g.onnx")


def test_values_are_read_through_hard_links(tmp_path: Path) -> None:
    path = _save(tmp_path)
    os.link(tmp_path / "weights.bin", tmp_path / "second_name.bin")
    assert read_onnx(path).graph.initializer[0].raw_data == VALUES.tobytes()


def test_values_inside_branches_and_attributes_are_found(tmp_path: Path) -> None:
    outer = onnx.load(_save(tmp_path), load_external_data=False)
    tensor = outer.graph.initializer.pop()
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([constant], "branch", [], [], [tensor])
    outer.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch))
    path = tmp_path / "nested.onnx"
    path.write_bytes(outer.SerializeToString())
    assert len(external_tensors(outer)) == 2
    assert external_tensors(read_onnx(path)) == []


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", ""])
def test_values_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    inner = tmp_path / "graphs"
    inner.mkdir()
    with pytest.raises(ModelError, match="not inside the folder"):
        read_onnx(_save(inner, location))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, offset=12)
    with pytest.raises(ModelError, match=r"holds 20 of the 24 bytes of 'w'.*cut short"):
        read_onnx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = _save(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"'weights\.bin' beside it.*No such file"):
        read_onnx(path)
