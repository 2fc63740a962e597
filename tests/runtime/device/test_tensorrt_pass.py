"""TensorRT over device arrays: its double on the driver double, captured and replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from emulated_backend import EmulatedBackend
from tensorrt_results import compute

from unblemish.bundle import Bundle, write_bundle
from unblemish.errors import BackendError, ShapeError
from unblemish.export import differentiate
from unblemish.export.engines.options import EngineOptions
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.device import DeviceInversion, Replay, Schedule, run
from unblemish.runtime.device.engines import DeviceEngines, device_engines
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.steps.inversion import GeneratorPasses
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.inversion import Targets
from unblemish.runtime.methods.joint import JointInversion
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.loop import Limits, Outcome
from unblemish.runtime.solvers.loop import run as run_on_host

IMAGE = (1, 12, 10)
FORWARD, BACKWARD = "generator_forward", "generator_backward"
NEWEST = pytest.mark.parametrize("tensorrt", ["11.4.0.5"], indirect=True)


def graphs() -> dict[str, onnx.ModelProto]:
    """z (batch, 5) -> tanh(relu(z A) B) as images, and the way back."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]>
        g (float[batch,5] z) => (float[batch,1,12,10] image) {
          a = MatMul(z, A)  r = Relu(a)  b = MatMul(r, B)  t = Tanh(b)
          shape = Constant<value_ints = [-1, 1, 12, 10]>()
          image = Reshape(t, shape)
        }"""
    )
    for name, shape in (("A", (5, 16)), ("B", (16, 120))):
        weights = (rng.normal(size=shape) / 3).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    made = differentiate(model, ["z"])
    return {FORWARD: made.forward, BACKWARD: made.backward}


def tensors(values: Any) -> list[dict[str, Any]]:
    """Records of a graph's inputs or outputs."""
    return [
        {
            "name": v.name,
            "shape": [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            "dtype": onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name,
            "role": "kept",
        }
        for v in values
    ]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = graphs()
    records = {
        role: {"file": f"graphs/{role}.onnx", "flops": 1, "inputs": tensors(model.graph.input),
               "outputs": tensors(model.graph.output)}
        for role, model in made.items()
    }  # fmt: skip
    files = {f"graphs/{role}.onnx": model.SerializeToString() for role, model in made.items()}
    return write_bundle(tmp_path / "part.bundle", files, {
        "name": "part", "created_by": "0", "graphs": records,
        "model": {"kind": "onnx", "latent_size": 5, "parameters": 12, "source": "a",
                  "source_sha256": "0" * 64},
        "preprocess": {"width": 10, "height": 12, "channels": 1, "low": -1, "high": 1},
    })  # fmt: skip


@pytest.fixture
def built(tensorrt: Any, kernels: Any, bundle: Bundle) -> tuple[Any, Bundle]:
    """The bundle with engines for batches of up to 4, and the double, on the driver's stream."""
    from unblemish.export.engines.bundle_engines import build_engines

    tensorrt.on_execute = compute(tensorrt)
    memory = tensorrt.memory_of(tensorrt)
    made = build_engines(bundle, EngineOptions(4, 2), memory=memory, say=lambda _: None)
    tensorrt.drive(tensorrt, kernels.device.driver)
    tensorrt.calls.clear()
    return tensorrt, made


def opened(world: Any, kernels: Any, fallback: Any = OrtBackend) -> DeviceEngines:
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    found = device_engines(TensorRtBackend(world.memory, fallback=fallback), kernels)
    assert found is not None
    return found


def paths(bundle: Bundle) -> tuple[str, str]:
    return str(bundle.graph(FORWARD)), str(bundle.graph(BACKWARD))


def host_search(bundle: Bundle, images: Any, z: Any, lam: Any) -> Outcome:
    engine = GeneratorEngine(OrtBackend().pair(*paths(bundle)), "z", "image")
    objective = JointInversion(engine, NumpyKernels(), Targets(images, np.arange(len(z))), lam)
    start = (z, np.zeros_like(images))
    return run_on_host(objective, Adam(NumpyKernels(), (0.1, 0.1)), start, Limits(20))


class Device:
    """A search for one batch size, started and run again and again."""

    def __init__(self, engines: DeviceEngines, bundle: Bundle, batch: int) -> None:
        self.kernels = engines.kernels
        z = self.kernels.device.zeros((batch, 5))
        self.pair = engines.pair(*paths(bundle), {"z": z})
        passes = GeneratorPasses.of(self.pair)
        self.step = DeviceInversion(self.kernels, passes, Ends.of(Limits(20)))
        self.replay = Replay(self.kernels.device, self.step)

    def search(self, images: Any, z: Any, lam: Any) -> Outcome:
        self.step.start(images, z, lam)
        return self.step.outcome(run(self.kernels.device, self.replay, Schedule(6)))


def problem(batch: int, seed: int = 3) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    images = rng.uniform(-0.8, 0.8, (batch, *IMAGE)).astype(np.float32)
    return images, rng.normal(size=(batch, 5)).astype(np.float32), np.full(batch, 0.1, np.float32)


def same(found: Outcome, expected: Outcome) -> None:
    assert found.status == expected.status
    for ours, theirs in zip(found.trace, expected.trace, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    np.testing.assert_allclose(found.best[0], expected.best[0], atol=5e-3)


def test_captured_search_is_that_of_the_host(built: Any, kernels: Any) -> None:
    world, bundle = built
    device = Device(opened(world, kernels), bundle, 3)
    assert device.pair.capturable
    found = device.search(*problem(3))
    assert device.replay.captured
    same(found, host_search(bundle, *problem(3)))


@NEWEST
def test_searches_of_two_batches_do_not_touch_each_other(built: Any, kernels: Any) -> None:
    """A graph holds its context's shapes and addresses: that of the other size leaves them."""
    world, bundle = built
    engines = opened(world, kernels)
    small, large = Device(engines, bundle, 1), Device(engines, bundle, 4)
    for seed in (3, 4):
        for device, batch in ((small, 1), (large, 4)):
            given = problem(batch, seed)
            same(device.search(*given), host_search(bundle, *given))
    assert len(world.called("Runtime", "deserialize_cuda_engine")) == 2
    assert len(world.called("ICudaEngine", "create_execution_context")) == 4


@NEWEST
def test_what_is_kept_is_read_where_it_was_written(built: Any, kernels: Any) -> None:
    world, bundle = built
    pair = opened(world, kernels).pair(*paths(bundle), {"z": kernels.device.zeros((2, 5))})
    shared = set(pair.forward.outputs) & set(pair.backward.inputs)
    assert shared
    for name in shared:
        assert pair.forward.outputs[name].pointer == pair.backward.inputs[name].pointer
    places = world.called("IExecutionContext", "set_tensor_address")
    assert {len({address for n, address in places if n == name}) for name in shared} == {1}


@NEWEST
def test_contexts_share_the_memory_between_layers(built: Any, kernels: Any) -> None:
    world, bundle = built
    engines, zeros = opened(world, kernels), kernels.device.zeros
    for batch in (4, 1, 3):
        engines.single(paths(bundle)[0], {"z": zeros((batch, 5))})
    places = world.called("IExecutionContext", "set_device_memory")
    assert len({address for address, _ in places}) == 1
    sizes = [size for _, size in places]
    assert sizes[0] > sizes[2] > sizes[1]  # as the batches


@NEWEST
def test_engine_that_cannot_be_captured_runs_piece_by_piece(
    built: Any, kernels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world, bundle = built
    world.uncapturable.add(BACKWARD)
    device = Device(opened(world, kernels), bundle, 2)
    assert "generator_backward' failed to start: an operation is not permitted" in caplog.text
    assert device.pair.forward.capturable
    assert not device.pair.capturable
    found = device.search(*problem(2))
    assert not device.replay.captured
    same(found, host_search(bundle, *problem(2)))


@NEWEST
def test_batch_without_an_engine_runs_by_the_next_backend_there(built: Any, kernels: Any) -> None:
    world, bundle = built
    engines = opened(world, kernels, EmulatedBackend)
    with pytest.warns(RuntimeWarning, match=r"shape \(5, 5\) is outside of \(1, 5\) to \(4, 5\)"):
        device = Device(engines, bundle, 5)
    assert world.called("IExecutionContext", "execute_async_v3") == []
    same(device.search(*problem(5)), host_search(bundle, *problem(5)))
    found = Device(engines, bundle, 4).search(*problem(4))  # by TensorRT again
    same(found, host_search(bundle, *problem(4)))
    assert world.called("IExecutionContext", "execute_async_v3")


@NEWEST
def test_without_a_backend_on_the_device_the_reason_is_said(
    built: Any, bundle: Bundle, kernels: Any
) -> None:
    world, made = built
    with (
        pytest.warns(RuntimeWarning, match="is outside of"),
        pytest.raises(BackendError, match=r"no TensorRT engine was built .* onnxruntime does not"),
    ):
        Device(opened(world, kernels), made, 5)
    other = write_bundle(
        bundle.path.with_name("other.bundle"),
        {g.file: bundle.file(g.file).read_bytes() for g in bundle.manifest.graphs.values()},
        bundle.manifest.model_dump(exclude={"files", "engines"}),
    )
    with (
        pytest.warns(RuntimeWarning, match="has no engine of .* there are none"),
        pytest.raises(BackendError, match="build-engines"),
    ):
        Device(opened(world, kernels), other, 1)


@NEWEST
def test_inputs_that_do_not_fit_are_refused(built: Any, kernels: Any) -> None:
    world, bundle = built
    engines, device = opened(world, kernels), kernels.device
    whole = device.zeros((4, 5))
    part = type(whole)(whole.pointer + 20, (2, 5), whole.dtype, owner=whole)
    for inputs, said in (
        ({}, "needs input 'z'"),
        ({"z": device.zeros((2, 5), np.float64)}, "got float64"),
        ({"z": part}, "multiple of 256 bytes"),
    ):
        with pytest.raises(ShapeError, match=said):
            engines.single(paths(bundle)[0], inputs)


@NEWEST
def test_graph_is_known_before_it_is_bound(built: Any, kernels: Any) -> None:
    world, bundle = built
    graph = opened(world, kernels).graph(paths(bundle)[0])
    assert [spec.name for spec in graph.inputs] == ["z"]
    with pytest.raises(BackendError, match=r"\(9, 5\) is outside"):
        graph.over({"z": kernels.device.zeros((9, 5))})


@pytest.mark.gpu
def test_captured_search_on_hardware_is_that_of_the_host(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt")
    pytest.importorskip("pycuda.driver")
    from unblemish.export.engines.bundle_engines import build_engines
    from unblemish.kernels.cuda import CudaKernels
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    made = build_engines(bundle, EngineOptions(4, 2), say=lambda _: None)
    engines = TensorRtBackend().on_device(CudaKernels())
    for batch in (3, 1, 4):
        device = Device(engines, made, batch)
        found = device.search(*problem(batch))
        assert device.replay.captured
        same(found, host_search(made, *problem(batch)))
