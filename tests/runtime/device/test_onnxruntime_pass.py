"""ONNX Runtime over device arrays, on the driver double, whose memory is the CPU's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from emulated_backend import EmulatedBackend

from unblemish.errors import BackendError, ShapeError
from unblemish.export import differentiate
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.backends.ort_device import OrtDeviceBackend
from unblemish.runtime.backends.ort_session import open_session
from unblemish.runtime.device import DeviceInversion, Replay, Schedule, run
from unblemish.runtime.device.engines import DeviceEngines, device_engines
from unblemish.runtime.device.engines.onnxruntime_pass import OrtGraph
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.steps.inversion import GeneratorPasses
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.inversion import Targets
from unblemish.runtime.methods.joint import JointInversion
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.loop import Limits
from unblemish.runtime.solvers.loop import run as run_on_host

IMAGE = (1, 12, 10)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """z (batch, 5) -> tanh(relu(z A) B) as images, and the way back."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 21]>
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
    folder = tmp_path_factory.mktemp("graphs")
    for name, graph in (("forward", made.forward), ("backward", made.backward)):
        onnx.save(graph, folder / f"{name}.onnx")
    return str(folder / "forward.onnx"), str(folder / "backward.onnx")


@pytest.fixture
def engines(kernels: Any) -> DeviceEngines:
    found = device_engines(EmulatedBackend(), kernels)
    assert found is not None
    return found


def test_inversion_by_onnxruntime_is_that_of_the_host(
    kernels: Any, engines: Any, paths: Any
) -> None:
    rng = np.random.default_rng(3)
    images = rng.uniform(-0.8, 0.8, (3, *IMAGE)).astype(np.float32)
    z, lam = rng.normal(size=(3, 5)).astype(np.float32), np.full(3, 0.1, np.float32)
    host = JointInversion(
        GeneratorEngine(OrtBackend().pair(*paths), "z", "image"), NumpyKernels(),
        Targets(images, np.arange(3)), lam,
    )  # fmt: skip
    mask = np.zeros_like(images)
    limits = Limits(20)
    expected = run_on_host(host, Adam(NumpyKernels(), (0.1, 0.1)), (z, mask), limits)
    passes = GeneratorPasses.of(engines.pair(*paths, {"z": kernels.device.zeros((3, 5))}))
    step = DeviceInversion(kernels, passes, Ends.of(limits))
    step.start(images, z, lam)
    replay = Replay(kernels.device, step)
    found = step.outcome(run(kernels.device, replay, Schedule(6)))
    assert replay.captured
    assert found.status == expected.status
    for ours, theirs in zip(found.trace, expected.trace, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    np.testing.assert_allclose(found.best[0], expected.best[0], atol=5e-3)


def test_what_is_kept_is_handed_over_in_place(engines: Any, paths: Any) -> None:
    pair = engines.pair(*paths, {"z": engines.kernels.device.zeros((2, 5))})
    shared = set(pair.forward.outputs) & set(pair.backward.inputs)
    assert shared
    for name in shared:
        assert pair.forward.outputs[name].pointer == pair.backward.inputs[name].pointer


def test_a_graph_is_loaded_once_for_all_batches(engines: Any, paths: Any) -> None:
    zeros = engines.kernels.device.zeros
    passes = [engines.single(paths[0], {"z": zeros((batch, 5))}) for batch in (1, 4)]
    assert [p.outputs["image"].shape for p in passes] == [(1, *IMAGE), (4, *IMAGE)]
    assert engines.graph(paths[0]) is engines.graph(paths[0])


def test_inputs_that_do_not_fit_are_refused(engines: Any, paths: Any) -> None:
    device = engines.kernels.device
    for inputs, said in (
        ({}, "needs input 'z'"),
        ({"z": device.zeros((2, 6))}, "must be float32 of shape"),
        ({"z": device.zeros((2, 5), np.float64)}, "got float64"),
    ):
        with pytest.raises(ShapeError, match=said):
            engines.single(paths[0], inputs)


def test_another_stream_is_refused(kernels: Any, paths: Any) -> None:
    graph = OrtGraph(kernels.device, open_session(paths[0], 1))
    found = graph.over({"z": kernels.device.zeros((2, 5))})
    with pytest.raises(BackendError, match="the stream it was opened with"):
        found.enqueue(kernels.stream + 1)


def test_engines_of_the_host_have_none_on_the_device(kernels: Any) -> None:
    assert device_engines(OrtBackend(), kernels) is None


def test_kernels_of_the_host_keep_the_search_there() -> None:
    assert device_engines(EmulatedBackend(), NumpyKernels()) is None


def test_a_machine_without_a_gpu_says_why_the_search_stays_on_the_host(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> CudaKernels:
        raise BackendError("no GPU.")

    monkeypatch.setattr("unblemish.runtime.device.engines.CudaKernels", refuse)
    assert device_engines(EmulatedBackend()) is None
    assert "on the host, its engines on the GPU: no GPU" in caplog.text


def test_an_install_without_the_provider_says_so(kernels: Any, paths: Any) -> None:
    engines = OrtDeviceBackend("ort-cuda").on_device(kernels)
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        engines.graph(paths[0])
