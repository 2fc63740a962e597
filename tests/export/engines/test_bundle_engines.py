"""Engines of whole bundles, built and run through the double."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tensorrt_results import compute

from unblemish.bundle import Bundle, write_bundle
from unblemish.errors import ModelError, UnsupportedOperatorError
from unblemish.export.engines.options import EngineOptions
from unblemish.runtime.backends.onnxruntime import OrtBackend

NEWEST = pytest.mark.parametrize("tensorrt", ["11.4.0.5"], indirect=True)


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
    assert "HEIGHTxWIDTH" in capsys.readouterr().err
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


@pytest.fixture
def sized(tensorrt: Any, detector: Bundle, tmp_path: Path) -> tuple[Any, Bundle]:
    """Engines of the detector for images of two sizes, and the double that made them."""
    from unblemish.export.engines.bundle_engines import build_engines

    path = shutil.copytree(detector.path, tmp_path / "part.bundle")
    tensorrt.on_execute = compute(tensorrt)
    options = EngineOptions(sizes=((64, 32), (32, 32)), batch=3, usual_batch=2)
    memory = tensorrt.memory_of(tensorrt)
    return tensorrt, build_engines(Bundle.open(path), options, memory=memory, say=lambda _: None)


def test_features_have_engines_of_several_sizes_with_an_open_batch(sized: Any) -> None:
    world, made = sized
    assert {(r.role, r.size) for r in made.manifest.engines} == {
        (role, size) for role in made.manifest.graphs for size in ((64, 32), (32, 32))
    }
    for record in made.manifest.engines:
        assert record.parity < 1e-4
        assert f"{record.role}-{record.size[0]}x{record.size[1]}-" in record.file
    shapes = [
        tuple(tuple(one[i] for i in range(4)) for one in shapes)
        for name, *shapes in world.called("IOptimizationProfile", "set_shape")
        if name == "image"
    ]
    # As many crops as a search compares at once always fit.
    for height, width in ((64, 32), (32, 32)):
        most = 2 * 224 * 224 // (height * width)
        assert tuple((n, 1, height, width) for n in (1, 2, most)) in shapes


@NEWEST
def test_the_engine_is_chosen_by_the_size_of_the_images(
    sized: Any, rng: np.random.Generator
) -> None:
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    world, made = sized
    paths = [str(made.graph(role)) for role in ("features_forward", "features_backward")]
    exact = OrtBackend(1).pair(*paths)
    pair = TensorRtBackend(world.memory).pair(*paths)
    assert pair.image_sizes == ((64, 32), (32, 32))
    for shape in ((1, 1, 64, 32), (5, 1, 32, 32), (3, 1, 64, 32), (2, 1, 32, 32)):
        image = rng.standard_normal(shape).astype(np.float32)
        world.calls.clear()
        features = pair.forward({"image": image})["features"].copy()
        gradient = pair.backward({"features": np.ones_like(features)})["image"]
        assert len(world.called("IExecutionContext", "execute_async_v3")) == 2
        want = exact.forward({"image": image})["features"]
        np.testing.assert_allclose(features, want, rtol=1e-3, atol=1e-3)
        want = exact.backward({"features": np.ones_like(features)})["image"]
        np.testing.assert_allclose(gradient, want, rtol=1e-2, atol=1e-3 * np.abs(want).max())
    world.calls.clear()
    with pytest.warns(RuntimeWarning, match=r"there are engines for images of 64x32, 32x32"):
        other = pair.forward({"image": np.zeros((1, 1, 96, 32), np.float32)})["features"]
    assert pair.backward({"features": np.ones_like(other)})["image"].shape == (1, 1, 96, 32)
    assert world.called("IExecutionContext", "execute_async_v3") == []


@NEWEST
def test_only_sizes_that_are_missing_are_built(sized: Any) -> None:
    from unblemish.export.engines.bundle_engines import build_engines

    world, made = sized
    world.calls.clear()
    lines: list[str] = []
    options = EngineOptions(sizes=((32, 32), (32, 64)))
    more = build_engines(made, options, memory=world.memory, say=lines.append)
    assert len(world.called("Builder", "build_serialized_network")) == 3
    assert "features for 32x32: there already" in lines
    assert {r.size for r in more.manifest.engines} == {(64, 32), (32, 32), (32, 64)}


@NEWEST
def test_engines_of_before_they_had_sizes_load_and_are_replaced(
    sized: Any, rng: np.random.Generator
) -> None:
    """As written before: one size, none stated, in the name neither."""
    from unblemish.bundle import update_bundle
    from unblemish.bundle.engines import Device, engine_file
    from unblemish.export.engines.bundle_engines import build_engines
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    world, made = sized
    device, old, files = None, [], {}
    for record in made.manifest.engines:
        if record.size == (64, 32):
            device = Device(record.tensorrt, record.capability, record.system)
            name = engine_file(record.role, record.graph_sha256, device)
            files[name] = (made.path / record.file).read_bytes()
            fields = record.model_dump(exclude={"size"})
            old.append({**fields, "file": name})
    gone = {record.file for record in made.manifest.engines}
    made = update_bundle(made, files=files, drop=gone, engines=old)
    program = TensorRtBackend(world.memory).program(str(made.graph("features")))
    image = rng.standard_normal((2, 1, 64, 32)).astype(np.float32)
    world.calls.clear()
    program.run({"image": image})
    assert len(world.called("IExecutionContext", "execute_async_v3")) == 1
    options = EngineOptions(sizes=((64, 32),))
    again = build_engines(made, options, memory=world.memory, say=lambda _: None)
    assert [r.size for r in again.manifest.engines] == [(64, 32)] * 3
    assert not files.keys() & again.manifest.files.keys()


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


@pytest.mark.parametrize(
    ("rest", "operators", "batch"),
    [
        ("y = Add(z, t)", {"ReduceSum", "Add"}, "batch"),
        ("f = Cast<to = 1>(b) d = Div(t, f) y = Add(z, d)", {"ReduceSum", "Div", "Add"}, 1),
    ],
)
def test_graph_that_is_refused_as_it_is_has_its_lengths_fixed(
    detector: Bundle, tmp_path: Path, rest: str, operators: set[str], batch: int | str
) -> None:
    """Its axes are computed of the batch; only the second computes with the batch itself."""
    from unblemish.bundle.manifest import Graph, Tensor
    from unblemish.export.engines.prepare import Family

    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]>\n'
        "g (float[batch,4] z) => (float[batch,4] y) {"
        f" s = Shape(z) b = Slice(s, o, i) n = Sub(b, b) t = ReduceSum(z, n) {rest} }}"
    )
    for name, value in (("o", 0), ("i", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    content = model.SerializeToString()
    z = Tensor(name="z", shape=("batch", 4), dtype="float32", role="latent")
    y = Tensor(name="y", shape=("batch", 4), dtype="float32", role="feature")
    graph = Graph(file="graphs/g.onnx", inputs=(z,), outputs=(y,), flops=1)
    fields = {**detector.manifest.model_dump(), "graphs": {"encoder": graph.model_dump()}}
    bundle = write_bundle(tmp_path / "part.bundle", {"graphs/g.onnx": content}, fields)
    (made,) = Family(bundle, ("encoder",), EngineOptions(8, 2)).prepare((11, 4))
    assert made.ranges == ({} if batch == 1 else {"z": ((1, 4), (2, 4), (8, 4))})
    dims = made.model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [batch, 4]
    assert {n.op_type for n in made.model.graph.node} <= operators


def test_shapes_that_inference_does_not_know_are_seen_by_running(vae_bundle: Path) -> None:
    from unblemish.export.engines.prepare import Family

    bundle = Bundle.open(vae_bundle)
    roles = ("generator_forward", "generator_backward")
    options = EngineOptions(batch=5, usual_batch=2)
    _, known = Family(bundle, roles, options).prepare((11, 4))
    graphs = {role: record.model_copy() for role, record in bundle.manifest.graphs.items()}
    outputs = [
        t.model_copy(update={"shape": (f"unk__{k}", *t.shape[1:])})
        for k, t in enumerate(graphs["generator_forward"].outputs)
    ]
    graphs["generator_forward"] = graphs["generator_forward"].model_copy(
        update={"outputs": tuple(outputs)}
    )
    vague = Bundle(bundle.path, bundle.manifest.model_copy(update={"graphs": graphs}))
    _, seen = Family(vague, roles, options).prepare((11, 4))
    assert seen.ranges == known.ranges
    assert {tuple(s[0] for s in shapes) for shapes in known.ranges.values()} == {(1, 2, 5)}
