"""ONNX Runtime over device arrays, on the driver double, whose memory is the CPU's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from unblemish.errors import BackendError, ShapeError
from unblemish.export import differentiate
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.backends.onnxruntime import OrtPair
from unblemish.runtime.device import DeviceInversion, Replay, Schedule, run
from unblemish.runtime.device.onnxruntime_pass import OrtPass, cuda_session, ort_generator
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.inversion import Targets
from unblemish.runtime.methods.joint import JointInversion
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.loop import Limits
from unblemish.runtime.solvers.loop import run as run_on_host

IMAGE = (1, 12, 10)


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def sessions() -> tuple[ort.InferenceSession, ort.InferenceSession]:
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
    return _session(made.forward), _session(made.backward)


class _Later:
    """A pass whose engine runs when the stream gets there, as on a GPU."""

    def __init__(self, driver: Any, inner: Any) -> None:
        self.inputs, self.outputs, self.capturable = inner.inputs, inner.outputs, inner.capturable
        self._driver, self._inner = driver, inner

    def enqueue(self, stream: int) -> None:
        assert not self._driver.capturing
        self._driver.enqueue(lambda: self._inner.enqueue(stream))


def test_inversion_by_onnxruntime_is_that_of_the_host(
    kernels: Any, driver: Any, sessions: Any
) -> None:
    rng = np.random.default_rng(3)
    images = rng.uniform(-0.8, 0.8, (3, *IMAGE)).astype(np.float32)
    z, lam = rng.normal(size=(3, 5)).astype(np.float32), np.full(3, 0.1, np.float32)
    host = JointInversion(
        GeneratorEngine(OrtPair(*sessions), "z", "image"), NumpyKernels(),
        Targets(images, np.arange(3)), lam,
    )  # fmt: skip
    mask = np.zeros_like(images)
    limits = Limits(20)
    expected = run_on_host(host, Adam(NumpyKernels(), (0.1, 0.1)), (z, mask), limits)
    passes = ort_generator(kernels.device, *sessions, batch=3)
    later = replace(
        passes, forward=_Later(driver, passes.forward), backward=_Later(driver, passes.backward)
    )
    step = DeviceInversion(kernels, later, Ends.of(limits))
    step.start(images, z, lam)
    replay = Replay(kernels.device, step)
    found = step.outcome(run(kernels.device, replay, Schedule(6)))
    assert not replay.captured
    assert found.status == expected.status
    for ours, theirs in zip(found.trace, expected.trace, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    np.testing.assert_allclose(found.best[0], expected.best[0], atol=5e-3)


def test_what_is_kept_is_handed_over_in_place(kernels: Any, sessions: Any) -> None:
    passes = ort_generator(kernels.device, *sessions, batch=2)
    shared = set(passes.forward.outputs) & set(passes.backward.inputs)
    assert shared
    for name in shared:
        assert passes.forward.outputs[name].pointer == passes.backward.inputs[name].pointer


def test_inputs_that_do_not_fit_are_refused(kernels: Any, sessions: Any) -> None:
    device = kernels.device
    for inputs, said in (
        ({}, "needs input 'z'"),
        ({"z": device.zeros((2, 6))}, "must be float32 of shape"),
        ({"z": device.zeros((2, 5), np.float64)}, "got float64"),
    ):
        with pytest.raises(ShapeError, match=said):
            OrtPass(device, sessions[0], inputs)


def test_another_stream_is_refused(kernels: Any, sessions: Any) -> None:
    found = OrtPass(kernels.device, sessions[0], {"z": kernels.device.zeros((2, 5))})
    with pytest.raises(BackendError, match="the stream it was opened with"):
        found.enqueue(kernels.stream + 1)


def test_an_install_without_the_provider_says_so(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match="onnxruntime-gpu"):
        cuda_session("graph.onnx", kernels.device)
