"""Engines of whole bundles, built and run through the double."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from unblemish.bundle import Bundle, write_bundle
from unblemish.errors import ModelError, UnsupportedOperatorError
from unblemish.export.engines.options import EngineOptions


def compute(world: Any) -> Any:
    """Lets the double's engines give what ONNX Runtime makes of the graphs they were built of."""

    def run(name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        session = onnxruntime.InferenceSession(
            world.models[name], providers=["CPUExecutionProvider"]
        )
        values = session.run(list(outputs), {n: np.array(a) for n, a in inputs.items()})
        for view, value in zip(outputs.values(), values, strict=True):
            view[...] = value

    return run


@pytest.fixture
def built(tensorrt: Any, vae_bundle: Path) -> tuple[Any, Bundle, list[str]]:
    from unblemish.export.engines.bundle_engines import build_engines

    bundle = Bundle.open(vae_bundle)
    tensorrt.on_execute = compute(tensorrt)
    lines: list[str] = []
    made = build_engines(
        bundle, EngineOptions(batch=5, usual_batch=2), memory=tensorrt.memory_of(tensorrt),
        say=lines.append,
    )  # fmt: skip
    return tensorrt, made, lines


def test_engines_are_named_by_graph_version_chip_and_system(built: Any) -> None:
    world, bundle, _ = built
    opened = Bundle.open(bundle.path)  # verifies
    roles = {record.role for record in opened.manifest.engines}
    assert roles == set(opened.manifest.graphs)
    for record in opened.manifest.engines:
        assert f"-trt{world.version}-sm87-" in record.file
        assert record.graph_sha256[:16] in record.file
        assert record.file in opened.manifest.files
        assert record.parity is not None
        assert record.parity < 1e-6


def test_what_is_there_is_not_built_again(built: Any) -> None:
    from unblemish.export.engines.bundle_engines import build_engines

    world, bundle, _ = built
    before = len(world.called("Builder", "build_serialized_network"))
    lines: list[str] = []
    same = build_engines(bundle, memory=world.memory, say=lines.append)
    assert same.manifest == bundle.manifest
    assert len(world.called("Builder", "build_serialized_network")) == before
    assert all(line.endswith("there already") for line in lines)
    build_engines(bundle, EngineOptions(again=True), memory=world.memory, say=lines.append)
    assert len(world.called("Builder", "build_serialized_network")) == 2 * before


def test_engine_that_strays_is_not_written(tensorrt: Any, vae_bundle: Path) -> None:
    from unblemish.export.engines.bundle_engines import build_engines

    bundle = Bundle.open(vae_bundle)
    exact = compute(tensorrt)

    def stray(name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        exact(name, inputs, outputs)
        if name == "generator_backward":
            outputs["grad_z"] *= 1.01

    tensorrt.on_execute = stray
    with pytest.raises(ModelError, match=r"'generator_forward' strays .* by 0\.01"):
        build_engines(bundle, memory=tensorrt.memory_of(tensorrt), say=lambda _: None)
    assert Bundle.open(vae_bundle).manifest.engines == ()


def test_engines_of_other_devices_stay_and_those_of_older_graphs_go(built: Any) -> None:
    from unblemish.bundle import update_bundle
    from unblemish.export.engines.bundle_engines import build_engines

    world, bundle, _ = built
    one = bundle.manifest.engines[0]
    other = one.model_copy(update={"file": "engines/other.engine", "capability": "9.0"})
    old = one.model_copy(update={"file": "engines/old.engine", "graph_sha256": "0" * 64})
    records = [r.model_dump() for r in (*bundle.manifest.engines, other, old)]
    files = {"engines/other.engine": b"plan", "engines/old.engine": b"plan"}
    bundle = update_bundle(bundle, files=files, engines=records)
    made = build_engines(bundle, EngineOptions(again=True), memory=world.memory, say=lambda _: None)
    assert "engines/other.engine" in made.manifest.files
    assert "engines/old.engine" not in made.manifest.files
    assert not (made.path / "engines/old.engine").exists()


def test_digest_follows_graph_and_weights(vae_bundle: Path) -> None:
    from unblemish.bundle.engines import graph_digest

    manifest = Bundle.open(vae_bundle).manifest
    before = {role: graph_digest(manifest, role) for role in manifest.graphs}
    assert len(set(before.values())) == len(before)
    weights = [n for n in manifest.files if n.startswith("graphs/") and not n.endswith(".onnx")]
    changed = [manifest.graphs["encoder"].file, *weights[:1]]
    for name in changed:
        record = manifest.files[name].model_copy(update={"sha256": "0" * 64})
        other = manifest.model_copy(update={"files": {**manifest.files, name: record}})
        assert graph_digest(other, "encoder") != before["encoder"]
        forward = graph_digest(other, "generator_forward")
        assert (forward == before["generator_forward"]) == name.endswith("encoder.onnx")


def test_command_says_what_is_missing(vae_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unblemish.cli import main

    assert main(["build-engines", str(vae_bundle)]) == 2
    assert "unblemish[tensorrt]" in capsys.readouterr().err
    assert main(["build-engines", str(vae_bundle), "--size", "big"]) == 2
    assert "HEIGHT,WIDTH" in capsys.readouterr().err
    assert main(["build-engines", str(vae_bundle), "--hardware", "all"]) == 2
    assert "ampere+" in capsys.readouterr().err


def test_command_without_a_gpu_is_an_error(
    tensorrt: Any, vae_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unblemish.cli import main

    assert main(["build-engines", str(vae_bundle)]) == 2  # TensorRT is there, pycuda is not
    assert "pycuda" in capsys.readouterr().err


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """ResNet18's features for images of any size, with their gradient."""
    import torch

    from unblemish.export.backbones.resnet import RESNETS, ResNet
    from unblemish.export.detector import _records, detector_graphs
    from unblemish.export.feature_graph import feature_graph

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector")
    torch.save(ResNet(RESNETS["resnet18"], ("layer1", "layer2")).state_dict(), folder / "net.pth")
    graph = feature_graph(
        folder / "net.pth", layers=("layer1", "layer2"), camera=1, size=64, pool=3, select=range(9)
    )
    graphs = detector_graphs(graph.model)
    preprocess = {"width": 32, "height": 64, "channels": 1, "low": 0.0, "high": 1.0}
    files = {f"graphs/{role}.onnx": model.SerializeToString() for role, model in graphs.items()}
    return write_bundle(folder / "part.bundle", files, {
        "name": "part", "created_by": "0", "graphs": _records(graphs, graph.camera, preprocess),
        "model": {"kind": "resnet18", "latent_size": 0, "parameters": 1, "source": "net.pth",
                  "source_sha256": "0" * 64},
        "preprocess": preprocess,
    })  # fmt: skip


def test_features_of_any_size_become_engines_of_the_models_size(
    tensorrt: Any, detector: Bundle, tmp_path: Path, rng: np.random.Generator
) -> None:
    from unblemish.export.engines.bundle_engines import build_engines
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    path = shutil.copytree(detector.path, tmp_path / "part.bundle")
    tensorrt.on_execute = compute(tensorrt)
    memory = tensorrt.memory_of(tensorrt)
    made = build_engines(Bundle.open(path), memory=memory, say=lambda _: None)
    assert all(record.parity < 1e-4 for record in made.manifest.engines)
    assert tensorrt.called("IOptimizationProfile", "set_shape") == []
    pair = TensorRtBackend(memory).pair(
        str(made.graph("features_forward")), str(made.graph("features_backward"))
    )
    image = rng.standard_normal((1, 1, 64, 32)).astype(np.float32)
    tensorrt.calls.clear()
    features = pair.forward({"image": image})["features"]
    assert pair.backward({"features": np.ones_like(features)})["image"].shape == image.shape
    assert len(tensorrt.called("IExecutionContext", "execute_async_v3")) == 2
    with pytest.warns(RuntimeWarning, match=r"outside of \(1, 1, 64, 32\) to \(1, 1, 64, 32\)"):
        other = pair.forward({"image": np.repeat(image, 2, axis=0)})["features"]
    np.testing.assert_allclose(other[1], features[0], rtol=1e-3, atol=1e-3)


def test_check_of_a_bundle_names_the_node(detector: Bundle, tmp_path: Path) -> None:
    from unblemish.export.engines.prepare import check_bundle

    check_bundle(detector)
    path = Path(shutil.copytree(detector.path, tmp_path / "part.bundle"))
    model = onnx.load(str(path / "graphs/features.onnx"))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Det", ["before"], ["features"], name="last"))
    (path / "graphs/features.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedOperatorError, match=r"graph 'features'.*Det 'last'"):
        check_bundle(Bundle.open(path, verify=False))


def test_graph_that_is_refused_with_an_open_batch_is_made_for_one(
    detector: Bundle, tmp_path: Path
) -> None:
    from unblemish.bundle.manifest import Graph, Tensor
    from unblemish.export.engines.prepare import prepare

    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]>\n'
        "g (float[batch,4] z) => (float[batch,4] y) {"
        " s = Shape(z) b = Slice(s, o, i) n = Sub(b, b) t = ReduceSum(z, n) y = Add(z, t) }"
    )
    for name, value in (("o", 0), ("i", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    content = model.SerializeToString()
    z = Tensor(name="z", shape=("batch", 4), dtype="float32", role="latent")
    y = Tensor(name="y", shape=("batch", 4), dtype="float32", role="feature")
    graph = Graph(file="graphs/g.onnx", inputs=(z,), outputs=(y,), flops=1)
    fields = {**detector.manifest.model_dump(), "graphs": {"encoder": graph.model_dump()}}
    bundle = write_bundle(tmp_path / "part.bundle", {"graphs/g.onnx": content}, fields)
    (made,) = prepare(bundle, ("encoder",), EngineOptions(), (11, 4))
    assert made.ranges == {}
    assert [d.dim_value for d in made.model.graph.input[0].type.tensor_type.shape.dim] == [1, 4]
    assert {n.op_type for n in made.model.graph.node} <= {"ReduceSum", "Add"}


def test_shapes_that_inference_does_not_know_are_seen_by_running(vae_bundle: Path) -> None:
    from unblemish.export.engines.prepare import prepare

    bundle = Bundle.open(vae_bundle)
    roles = ("generator_forward", "generator_backward")
    _, known = prepare(bundle, roles, EngineOptions(batch=5, usual_batch=2), (11, 4))
    graphs = {role: record.model_copy() for role, record in bundle.manifest.graphs.items()}
    outputs = [
        t.model_copy(update={"shape": (f"unk__{k}", *t.shape[1:])})
        for k, t in enumerate(graphs["generator_forward"].outputs)
    ]
    graphs["generator_forward"] = graphs["generator_forward"].model_copy(
        update={"outputs": tuple(outputs)}
    )
    vague = Bundle(bundle.path, bundle.manifest.model_copy(update={"graphs": graphs}))
    _, seen = prepare(vague, roles, EngineOptions(batch=5, usual_batch=2), (11, 4))
    assert seen.ranges == known.ranges
    assert {tuple(s[0] for s in shapes) for shapes in known.ranges.values()} == {(1, 2, 5)}
