"""The TensorRT backend through the double: preflight, fallback, device memory, the pair."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tensorrt_results import compute

from unblemish.bundle import Bundle, update_bundle, write_bundle
from unblemish.errors import BackendError, BundleError, ShapeError
from unblemish.runtime.backends.onnxruntime import OrtBackend

HEADER = '<ir_version: 9, opset_import: ["": 20]>\n'
FORWARD = """g (float[batch,4] z) => (float[batch,3] image, bool[batch,3] kept)
    <float[4,3] W = {1, -2, 0.5, 0.25, 1.5, -1, -0.75, 0.1, 2, 1.25, -0.5, 0.3}> {
    h = MatMul(z, W)
    zero = Constant<value = float {0}>()
    kept = Greater(h, zero)
    r = Where(kept, h, zero)
    image = Tanh(r)
}"""
BACKWARD = """g (bool[batch,3] kept, float[batch,3] image, float[batch,3] ct_image)
    => (float[batch,4] grad_z)
    <float[3,4] V = {1, 0.25, -0.75, 1.25, -2, 1.5, 0.1, -0.5, 0.5, -1, 2, 0.3}> {
    zero = Constant<value = float {0}>()
    one = Constant<value = float {1}>()
    square = Mul(image, image)
    slope = Sub(one, square)
    g = Mul(ct_image, slope)
    masked = Where(kept, g, zero)
    grad_z = MatMul(masked, V)
}"""
PLAIN = FORWARD.replace(", bool[batch,3] kept)", ")")
GRAPHS = {"generator": PLAIN, "generator_forward": FORWARD, "generator_backward": BACKWARD}
CLOSE = 1e-6


def tensor(name: str, kind: str, width: int, role: str) -> dict[str, Any]:
    return {"name": name, "shape": ["batch", width], "dtype": kind, "role": role}


Z, IMAGE = tensor("z", "float32", 4, "latent"), tensor("image", "float32", 3, "image")
KEPT, CT = tensor("kept", "bool", 3, "kept"), tensor("ct_image", "float32", 3, "cotangent")
TENSORS: dict[str, Any] = {
    "generator": ([Z], [IMAGE]),
    "generator_forward": ([Z], [IMAGE, KEPT]),
    "generator_backward": ([KEPT, IMAGE, CT], [tensor("grad_z", "float32", 4, "gradient")]),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A generator of a matrix and a tanh, with its gradient."""
    files = {
        f"graphs/{role}.onnx": onnx.parser.parse_model(HEADER + text).SerializeToString()
        for role, text in GRAPHS.items()
    }
    graphs = {
        role: {"file": f"graphs/{role}.onnx", "inputs": i, "outputs": o, "flops": 1}
        for role, (i, o) in TENSORS.items()
    }
    return write_bundle(tmp_path / "part.bundle", files, {
        "name": "part", "created_by": "0", "graphs": graphs,
        "model": {"kind": "onnx", "latent_size": 4, "parameters": 12, "source": "a",
                  "source_sha256": "0" * 64},
        "preprocess": {"width": 3, "height": 1, "channels": 1, "low": 0, "high": 1},
    })  # fmt: skip


@pytest.fixture
def built(tensorrt: Any, bundle: Bundle) -> tuple[Any, Bundle]:
    """The bundle with engines for batches of up to 4, and the double that made them."""
    return tensorrt, build(tensorrt, bundle)


def build(world: Any, bundle: Bundle, **changes: Any) -> Bundle:
    from unblemish.export.engines.bundle_engines import build_engines
    from unblemish.export.engines.options import EngineOptions

    world.on_execute = compute(world)
    options = EngineOptions(batch=4, usual_batch=2, **changes)
    return build_engines(bundle, options, memory=world.memory_of(world), say=lambda _: None)


def backend(world: Any, **changes: Any) -> Any:
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    world.calls.clear()
    return TensorRtBackend(world.memory, **changes)


def pair_of(world: Any, bundle: Bundle, **changes: Any) -> Any:
    paths = [str(bundle.graph(role)) for role in ("generator_forward", "generator_backward")]
    return backend(world, **changes).pair(*paths)


def latents(rng: np.random.Generator, batch: int) -> Any:
    return rng.standard_normal((batch, 4)).astype(np.float32)


def test_pair_keeps_what_is_between_on_the_device(built: Any, rng: np.random.Generator) -> None:
    world, bundle = built
    pair = pair_of(world, bundle)
    exact = OrtBackend(1).pair(
        str(bundle.graph("generator_forward")), str(bundle.graph("generator_backward"))
    )
    assert type(pair).__name__ == "TensorRtPair"
    assert [spec.name for spec in pair.outputs] == ["image"]
    for batch in (1, 4, 2, 3):
        z, ct = latents(rng, batch), rng.standard_normal((batch, 3)).astype(np.float32)
        world.calls.clear()
        image = pair.forward({"z": z})["image"].copy()
        gradient = pair.backward({"image": ct})["z"]
        np.testing.assert_allclose(image, exact.forward({"z": z})["image"], atol=CLOSE)
        np.testing.assert_allclose(gradient, exact.backward({"image": ct})["z"], atol=CLOSE)
        addresses = world.called("IExecutionContext", "set_tensor_address")
        for name in ("kept", "image"):  # written by one engine, read there by the other
            assert len({address for n, address in addresses if n == name}) == 1
        streams = world.called("IExecutionContext", "execute_async_v3")
        assert streams == [(world.memory.stream,)] * 2


def test_buffers_grow_to_the_largest_batch_and_stay(built: Any, rng: np.random.Generator) -> None:
    world, bundle = built
    program = backend(world).program(str(bundle.graph("generator")))
    program.run({"z": latents(rng, 4)})
    allocated = len(world.memory.allocated)
    for batch in (1, 4, 3):
        program.run({"z": latents(rng, batch)})
    assert len(world.memory.allocated) == allocated


def test_engines_share_the_memory_between_layers(built: Any, rng: np.random.Generator) -> None:
    world, bundle = built
    both = backend(world)
    program = both.program(str(bundle.graph("generator")))
    pair = both.pair(*(str(bundle.graph(f"generator_{way}")) for way in ("forward", "backward")))
    for batch in (4, 4, 2):
        program.run({"z": latents(rng, batch)})
        pair.forward({"z": latents(rng, batch)})
        pair.backward({"image": np.ones((batch, 3), np.float32)})
    given = world.called("IExecutionContext", "set_device_memory")
    assert len(given) == 6  # of three engines, for each batch once
    sizes = [size for _, size in given]
    assert max(sizes[3:]) < max(sizes[:3])
    largest = max(given[:3], key=lambda one: one[1])[0]
    assert {address for address, _ in given[3:]} == {largest}


def test_arrays_that_are_not_contiguous_are_read_right(
    built: Any, rng: np.random.Generator
) -> None:
    world, bundle = built
    program = backend(world).program(str(bundle.graph("generator")))
    wide = latents(rng, 8)
    for view in (wide[::2], wide[::-2], np.asfortranarray(wide[:3])):
        want = OrtBackend(1).program(str(bundle.graph("generator"))).run({"z": view})["image"]
        np.testing.assert_allclose(program.run({"z": view})["image"], want, atol=CLOSE)


def test_larger_batches_run_elsewhere_and_say_so_once(built: Any, rng: np.random.Generator) -> None:
    world, bundle = built
    pair = pair_of(world, bundle)
    z, ct = latents(rng, 5), rng.standard_normal((5, 3)).astype(np.float32)
    with pytest.warns(RuntimeWarning, match=r"shape \(5, 4\) is outside of \(1, 4\) to \(4, 4\)"):
        pair.forward({"z": z})
    assert pair.backward({"image": ct})["z"].shape == (5, 4)
    assert world.called("IExecutionContext", "execute_async_v3") == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair.forward({"z": z})
        pair.forward({"z": z[:2]})  # and back on the device
        assert pair.backward({"image": ct[:2]})["z"].shape == (2, 4)
    assert len(world.called("IExecutionContext", "execute_async_v3")) == 2


def test_wrong_feeds_are_refused(built: Any, rng: np.random.Generator) -> None:
    world, bundle = built
    pair = pair_of(world, bundle)
    with pytest.raises(BackendError, match="before forward"):
        pair.backward({"image": np.zeros((1, 3), np.float32)})
    with pytest.raises(ShapeError, match="needs input 'z'"):
        pair.forward({"x": latents(rng, 1)})
    with pytest.raises(ShapeError, match="must be float32"):
        pair.forward({"z": latents(rng, 1).astype(np.float64)})
    pair.forward({"z": latents(rng, 2)})
    with pytest.raises(ShapeError, match="cotangent of output 'image'"):
        pair.backward({})
    with pytest.raises(ShapeError, match="must have shape"):
        pair.backward({"image": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize(
    ("field", "value"),
    [("tensorrt", "10.0.0.1"), ("capability", "9.0"), ("system", "win32-amd64")],
)
def test_engines_of_another_device_are_not_loaded(built: Any, field: str, value: str) -> None:
    world, bundle = built
    records = [{**r.model_dump(), field: value} for r in bundle.manifest.engines]
    bundle = update_bundle(bundle, engines=records)
    with pytest.warns(RuntimeWarning, match=rf"no engine of .*there are some of .*{value}"):
        pair = pair_of(world, bundle)
    assert type(pair).__name__ == "OrtPair"
    assert world.called("Runtime", "deserialize_cuda_engine") == []


def test_engines_of_changed_graphs_are_not_loaded(built: Any) -> None:
    world, bundle = built
    path = bundle.graph("generator_forward")
    model = onnx.load(str(path))
    model.doc_string = "changed"
    bundle = update_bundle(
        bundle, files={"graphs/generator_forward.onnx": model.SerializeToString()}
    )
    with pytest.warns(
        RuntimeWarning, match="no engine of generator_forward and generator_backward"
    ):
        pair = pair_of(world, bundle)
    assert type(pair).__name__ == "OrtPair"


def test_changed_engine_is_an_error_and_never_reaches_tensorrt(built: Any) -> None:
    world, bundle = built
    for record in bundle.manifest.engines:
        path = bundle.path / record.file
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match="an engine is code"):
        pair_of(world, bundle)
    assert world.called("Runtime", "deserialize_cuda_engine") == []


def test_engine_without_a_record_is_not_loaded(built: Any, tmp_path: Path) -> None:
    world, bundle = built
    bare = Bundle(bundle.path, bundle.manifest)
    manifest = bare.manifest.model_dump()
    name = bare.manifest.engines[0].file
    manifest["files"] = {n: r for n, r in manifest["files"].items() if n != name}
    text = type(bare.manifest).model_validate(manifest).model_dump_json()
    (bundle.path / "manifest.json").write_text(text)
    role = bare.manifest.engines[0].role
    with pytest.raises(BundleError, match="no record in the manifest, so it is not loaded"):
        backend(world).program(str(bundle.graph(role)))


def test_rebuild_adds_what_is_missing(tensorrt: Any, bundle: Bundle) -> None:
    tensorrt.memory_of(tensorrt)
    with pytest.warns(RuntimeWarning, match="they are built now"):
        pair = pair_of(tensorrt, bundle, rebuild=lambda b: build(tensorrt, b))
    assert type(pair).__name__ == "TensorRtPair"
    assert Bundle.open(bundle.path).manifest.engines


def test_version_compatible_engines_load_in_later_versions_only(
    tensorrt: Any, bundle: Bundle
) -> None:
    made = build(tensorrt, bundle, version_compatible=True)
    major = tensorrt.version.partition(".")[0]
    for version, loads in (
        (f"{major}.0.0.1", True),
        (f"{major}.99.0.1", False),
        ("9.0.0.1", False),
    ):
        records = [{**r.model_dump(), "tensorrt": version} for r in made.manifest.engines]
        other = update_bundle(made, engines=records)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            pair = pair_of(tensorrt, other)
        assert (type(pair).__name__ == "TensorRtPair") == loads


def test_graph_outside_a_bundle_runs_elsewhere(built: Any, tmp_path: Path) -> None:
    world, bundle = built
    path = shutil.copy(bundle.graph("generator"), tmp_path / "alone.onnx")
    with pytest.warns(RuntimeWarning, match="lies in no bundle"):
        program = backend(world).program(str(path))
    assert program.run({"z": np.zeros((1, 4), np.float32)})["image"].shape == (1, 3)


def test_missing_library_names_its_extra() -> None:
    from unblemish.runtime.backends import open_backend

    with pytest.raises(BackendError, match=r"unblemish\[tensorrt\]"):
        open_backend("tensorrt")


@pytest.mark.gpu
def test_engines_on_hardware_give_what_onnx_runtime_gives(
    bundle: Bundle, rng: np.random.Generator
) -> None:
    pytest.importorskip("tensorrt")
    pytest.importorskip("pycuda.driver")
    from unblemish.export.engines.bundle_engines import build_engines
    from unblemish.export.engines.options import EngineOptions
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    made = build_engines(bundle, EngineOptions(batch=4, usual_batch=2), say=lambda _: None)
    paths = [str(made.graph(role)) for role in ("generator_forward", "generator_backward")]
    pair, exact = TensorRtBackend().pair(*paths), OrtBackend(1).pair(*paths)
    assert type(pair).__name__ == "TensorRtPair"
    for batch in (1, 4, 3):
        z, ct = latents(rng, batch), rng.standard_normal((batch, 3)).astype(np.float32)
        np.testing.assert_allclose(
            pair.forward({"z": z})["image"], exact.forward({"z": z})["image"], atol=1e-5
        )
        np.testing.assert_allclose(
            pair.backward({"image": ct})["z"], exact.backward({"image": ct})["z"], atol=1e-5
        )
