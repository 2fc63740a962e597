"""One file for the weights of several graphs: what it saves, and that every engine reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from unblemish.errors import BackendError, ModelError
from unblemish.export.sharing.share_weights import FILE_NAME, SharedWeights, share_weights
from unblemish.runtime.backends import open_backend

Float = NDArray[np.float32]
Graphs = dict[str, onnx.ModelProto]
ENGINES = ("onnxruntime", "openvino", "torch")


def _model(weights: dict[str, Float], *, transposed: bool, free: bool = False) -> onnx.ModelProto:
    """y = x W + b, or x W^T + b; with `free`, W and b may be fed."""
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "dense", transB=int(transposed))
    wide = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", None]) for n in "xy"}
    fed = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in weights.items()]
    graph = helper.make_graph(
        [gemm], "dense", [wide["x"], *(fed if free else [])], [wide["y"]],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def dense(rng: np.random.Generator) -> Float:
    """A weight of 4,096 bytes, the least that is moved."""
    return rng.standard_normal((32, 32)).astype(np.float32)


@pytest.fixture
def graphs(dense: Float, rng: np.random.Generator) -> Graphs:
    """Two graphs with a weight in common, under one name; their biases are small and differ."""
    return {
        name: _model(
            {"w": dense, "b": rng.standard_normal(32).astype(np.float32)}, transposed=name == "back"
        )
        for name in ("there", "back")
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[SharedWeights], dict[str, Path]]:
    """Write shared graphs and their file into one folder."""

    def write(shared: SharedWeights) -> dict[str, Path]:
        (tmp_path / FILE_NAME).write_bytes(shared.data)
        paths = {name: tmp_path / f"{name}.onnx" for name in shared.graphs}
        for name, path in paths.items():
            path.write_bytes(shared.graphs[name].SerializeToString())
        return paths

    return write


def _places(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    return {
        t.name: {e.key: e.value for e in t.external_data}
        for t in model.graph.initializer
        if t.external_data
    }


def test_equal_contents_are_stored_once(graphs: Graphs, dense: Float) -> None:
    shared = share_weights(graphs)
    assert shared.data == dense.tobytes()
    place = {"location": FILE_NAME, "offset": "0", "length": "4096"}
    assert [_places(model) for model in shared.graphs.values()] == [{"w": place}] * 2


def test_contents_count_and_neither_names_nor_shapes_do(dense: Float) -> None:
    renamed = _model({"w": dense, "b": dense.reshape(-1)}, transposed=False)
    shared = share_weights({"a": renamed})
    assert shared.data == dense.tobytes()
    assert _places(shared.graphs["a"])["w"] == _places(shared.graphs["a"])["b"]


def test_small_tensors_stay_in_the_graph(graphs: Graphs) -> None:
    assert share_weights(graphs, least=4097).data == b""
    biases = share_weights(graphs, least=128)
    assert all(set(_places(model)) == {"w", "b"} for model in biases.graphs.values())
    assert len(biases.data) == 4096 + 2 * 128


def test_every_tensor_starts_at_a_multiple_of_64_bytes(rng: np.random.Generator) -> None:
    odd = {n: rng.standard_normal(1025).astype(np.float32) for n in ("u", "v", "w")}
    model = _model(odd, transposed=False)
    shared = share_weights({"odd": model})
    offsets = [int(place["offset"]) for place in _places(shared.graphs["odd"]).values()]
    assert offsets == [0, 4160, 8320]
    for (name, values), offset in zip(odd.items(), offsets, strict=True):
        assert shared.data[offset : offset + 4100] == values.tobytes(), name


def test_values_in_typed_fields_are_stored_raw() -> None:
    values = np.linspace(-1, 1, 2048).astype(np.float16)
    typed = helper.make_tensor("w", TensorProto.FLOAT16, [2048], values.tolist())
    assert not typed.HasField("raw_data")
    graph = helper.make_graph([], "typed", [], [], [typed])
    assert share_weights({"typed": helper.make_model(graph)}).data == values.tobytes()


def test_the_graphs_given_are_left_alone(graphs: Graphs) -> None:
    before = {name: model.SerializeToString() for name, model in graphs.items()}
    share_weights(graphs)
    assert {name: model.SerializeToString() for name, model in graphs.items()} == before


def test_what_was_shared_can_be_read_and_shared_again(
    graphs: Graphs, write: Callable[..., Any]
) -> None:
    shared = share_weights(graphs)
    again = {name: onnx.load(path) for name, path in write(shared).items()}
    assert not any(_places(model) for model in again.values())
    assert share_weights(again) == shared


def test_weights_that_are_not_loaded_are_refused(graphs: Graphs) -> None:
    with pytest.raises(ModelError, match=r"'w' keeps its values in another file.*onnx\.load"):
        share_weights(share_weights(graphs).graphs)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_give_the_results_of_inline_weights(
    graphs: Graphs, write: Callable[..., Any], tmp_path: Path, engine: str, rng: np.random.Generator
) -> None:
    pytest.importorskip(engine)
    x = rng.standard_normal((3, 32)).astype(np.float32)
    paths = write(share_weights(graphs))
    for name, model in graphs.items():
        inline = tmp_path / f"{name}_inline.onnx"
        inline.write_bytes(model.SerializeToString())
        expected, found = (
            open_backend(engine, 1).program(str(path)).run({"x": x})["y"]
            for path in (inline, paths[name])
        )
        np.testing.assert_array_equal(found, expected)  # the same graph with the same numbers
        w, b = (numpy_helper.to_array(t) for t in model.graph.initializer)
        # float32 sums of 32 products
        np.testing.assert_allclose(
            found, x @ (w.T if name == "back" else w) + b, rtol=1e-4, atol=1e-5
        )


def test_an_overridable_initialiser_can_still_be_fed(
    dense: Float, write: Callable[..., Any]
) -> None:
    bias = np.arange(32, dtype=np.float32)
    model = _model({"w": dense, "b": bias}, transposed=False, free=True)
    (path,) = write(share_weights({"free": model})).values()
    program = open_backend("onnxruntime", 1).program(str(path))
    assert [spec.name for spec in program.inputs] == ["x"]
    x = np.eye(32, dtype=np.float32)
    np.testing.assert_array_equal(program.run({"x": x})["y"], dense + bias)
    np.testing.assert_array_equal(program.run({"x": x, "w": 2 * dense})["y"], 2 * dense + bias)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_missing_file_is_named(graphs: Graphs, write: Callable[..., Any], engine: str) -> None:
    pytest.importorskip(engine)
    path = write(share_weights(graphs))["there"]
    (path.parent / FILE_NAME).unlink()
    with pytest.raises((BackendError, ModelError), match=r"weights\.bin"):
        open_backend(engine, 1).program(str(path))
