"""Searches on the device against those of the host, whose rules and results they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import BackendError, ShapeError
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.device import DeviceAlternation, DeviceInversion, Replay, Schedule, run
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.steps.alternation import AlternationSettings
from unblemish.runtime.device.steps.inversion import GeneratorPasses
from unblemish.runtime.inspection import Status
from unblemish.runtime.solvers.adam import Adam
from unblemish.runtime.solvers.alternation import Alternation
from unblemish.runtime.solvers.loop import Limits, Outcome
from unblemish.runtime.solvers.loop import run as run_on_host
from unblemish.runtime.solvers.protocol import Evaluation

SHAPE = (5, 2, 7, 9)
# Both sides round to float32 in every step; the projections below shrink what they differ by.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def _projection(seed: int = 0) -> np.ndarray:
    """An autoencoder without layers: the projection on six directions."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(126, 6)))[0]
    return (basis @ basis.T).astype(np.float32)


def _images(batch: int = SHAPE[0], seed: int = 1) -> np.ndarray:
    """Images of the six directions with a blemish each, of different size."""
    rng = np.random.default_rng(seed)
    clean = (rng.normal(size=(batch, 126)) @ _projection()).reshape(batch, *SHAPE[1:])
    for item in range(batch):
        clean[item, :, 2:4, item % 6 : item % 6 + 2] += 0.3 * (item + 1)
    return clean.astype(np.float32)


class _Energy:
    """E(x) = p |x - f(x)|^2 + lam |x - x_0|_1 on the host; see `Alternation`."""

    stages = 1

    def __init__(self, images: Any, lam: float, precision: float) -> None:
        self.images, self.lam, self.precision = images, lam, precision

    def evaluate(self, query: Any, items: Any, stage: Any) -> Evaluation:
        (x,) = query
        made = (x.reshape(len(x), -1) @ _projection()).reshape(x.shape)
        away = np.abs(x - self.images[items]).sum(axis=(1, 2, 3), dtype=np.float64)
        loss = np.square(x - made, dtype=np.float64).sum(axis=(1, 2, 3))
        threshold = np.full((len(x), 1, 1, 1), self.lam / (2 * self.precision), np.float32)
        return Evaluation(self.precision * loss + self.lam * away, (made, threshold))


def _alternation(
    kernels: Any, numpy_pass: Any, settings: Any, ends: Ends, **more: Any
) -> DeviceAlternation:
    x, made = (kernels.device.empty(SHAPE) for _ in range(2))

    def function(image: Any) -> dict[str, Any]:
        return {
            "reconstruction": (image.reshape(len(image), -1) @ _projection()).reshape(image.shape)
        }

    engine = numpy_pass({"image": x}, {"reconstruction": made}, function, **more)
    return DeviceAlternation(kernels, engine, settings, ends)


def _same(found: Outcome, expected: Outcome) -> None:
    assert found.status == expected.status
    np.testing.assert_array_equal(found.steps, expected.steps)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-4)
    for ours, theirs in zip(found.best, expected.best, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    for ours, theirs in zip(found.trace, expected.trace, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("every", "tolerance"), [(1, 0.0), (4, 0.0), (50, 1e-2), (3, 1e-2)])
def test_alternation_ends_as_on_the_host_however_often_the_host_looks(
    kernels: Any, numpy_pass: Any, every: int, tolerance: float
) -> None:
    images = _images()
    images[3] = (images[3].reshape(1, -1) @ _projection()).reshape(images[3].shape)  # at once done
    limits = Limits(40, tolerance)
    solver = Alternation(-2.0, 2.0)
    expected = run_on_host(_Energy(images, 0.2, 0.7), solver, (images,), limits)
    settings = AlternationSettings(lam=0.2, precision=0.7, lower=-2.0, upper=2.0)
    step = _alternation(kernels, numpy_pass, settings, Ends.of(limits, least=1e-3))
    step.start(images)
    replay = Replay(kernels.device, step)
    found = step.outcome(run(kernels.device, replay, Schedule(every)))
    assert replay.captured
    assert len(set(expected.steps)) > 1  # or else nobody ends before the others
    _same(found, expected)


def test_a_captured_step_serves_the_next_images(kernels: Any, driver: Any, numpy_pass: Any) -> None:
    settings = AlternationSettings(lam=0.2, precision=0.7, lower=-2.0, upper=2.0)
    limits = Limits(40)
    step = _alternation(kernels, numpy_pass, settings, Ends.of(limits, least=1e-3))
    replay, outcomes = Replay(kernels.device, step), []
    step.start(_images())
    run(kernels.device, replay, Schedule(2))
    allocations, launched = driver.allocations, len(driver.launched)
    for seed in (1, 8):
        images = _images(seed=seed)
        step.start(images)
        outcomes.append(step.outcome(run(kernels.device, replay, Schedule(2))))
        solver = Alternation(-2.0, 2.0)
        _same(outcomes[-1], run_on_host(_Energy(images, 0.2, 0.7), solver, (images,), limits))
    assert driver.allocations == allocations
    assert len(driver.launched) == launched  # every step was a replay


def test_a_step_whose_engine_cannot_be_captured_is_put_on_the_stream_again(
    kernels: Any, numpy_pass: Any
) -> None:
    settings = AlternationSettings(lam=0.2, precision=0.7, lower=-2.0, upper=2.0)
    limits, images = Limits(40), _images()
    ends = Ends.of(limits, least=1e-3)
    step = _alternation(kernels, numpy_pass, settings, ends, capturable=False)
    step.start(images)
    replay = Replay(kernels.device, step)
    found = step.outcome(run(kernels.device, replay, Schedule(5)))
    assert not replay.captured
    solver = Alternation(-2.0, 2.0)
    _same(found, run_on_host(_Energy(images, 0.2, 0.7), solver, (images,), limits))


def test_alternation_may_be_measured_by_dssim(kernels: Any, numpy_pass: Any) -> None:
    images, limits = _images(), Limits(6)
    settings = AlternationSettings(lam=0.2, precision=1.0, lower=-2.0, upper=2.0, data_range=4.0)
    step = _alternation(kernels, numpy_pass, settings, Ends.of(limits, least=1e-3))
    step.start(images)
    found = step.outcome(run(kernels.device, Replay(kernels.device, step), Schedule(2)))
    made = (images.reshape(5, -1) @ _projection()).reshape(SHAPE)
    first = np.empty(5)
    NumpyKernels().dssim(
        images, made, np.ones(5, np.float32), data_range=4.0, dissimilarity=None, direct=None,
        cotangent=None, objective=first,
    )  # fmt: skip
    np.testing.assert_allclose([trace[0] for trace in found.trace], first, rtol=1e-4, atol=1e-6)


def test_an_item_that_is_not_finite_ends_alone(kernels: Any, numpy_pass: Any) -> None:
    images, limits = _images(), Limits(40)
    images[2, 1, 3, 3] = np.nan
    settings = AlternationSettings(lam=0.2, precision=0.7, lower=-2.0, upper=2.0)
    step = _alternation(kernels, numpy_pass, settings, Ends.of(limits, least=1e-3))
    step.start(images)
    found = step.outcome(run(kernels.device, Replay(kernels.device, step), Schedule(3)))
    assert [s is Status.NON_FINITE for s in found.status] == [False, False, True, False, False]
    assert found.steps[2] == 1
    assert found.value[2] == np.inf


class _CopyPass:
    """An engine that any driver can run and capture: it makes the same image of everything."""

    capturable = True

    def __init__(self, device: Any, constant: Any) -> None:
        self.inputs = {"image": device.empty(constant.shape)}
        self.outputs = {"reconstruction": device.empty(constant.shape)}
        self._device, self._constant = device, device.to_device(constant)

    def enqueue(self, stream: int) -> None:
        assert stream == self._device.driver.stream
        self._device.copy(self.outputs["reconstruction"], self._constant)


def test_what_is_always_made_is_reached_in_closed_form(any_kernels: Any) -> None:
    device, images = any_kernels.device, _images()
    constant = np.random.default_rng(6).normal(size=SHAPE).astype(np.float32)
    settings = AlternationSettings(lam=0.4, precision=0.5, lower=-1.5, upper=1.5)
    step = DeviceAlternation(
        any_kernels, _CopyPass(device, constant), settings, Ends(30, least=1e-5)
    )
    step.start(images)
    replay = Replay(device, step)
    found = step.outcome(run(device, replay, Schedule(4)))
    assert replay.captured
    apart = constant - images
    x = images + np.sign(apart) * np.maximum(np.abs(apart) - 0.4, 0)
    # The value is that of every query: the frames, then where the first step led.
    x = np.clip(x, -1.5, 1.5)
    energy = 0.5 * np.square(x - constant).sum((1, 2, 3)) + 0.4 * np.abs(x - images).sum((1, 2, 3))
    np.testing.assert_allclose([trace[1] for trace in found.trace], energy, rtol=1e-5)
    np.testing.assert_allclose(found.best[0], x, **CLOSE)
    assert set(found.status) == {Status.CONVERGED}
    assert found.steps.max() <= 3


class _Generator:
    """G(z) = tanh(A z) and the joint objective of latent and mask, on the host."""

    stages = 1

    def __init__(self, images: Any, lam: Any, shared: bool) -> None:
        self.matrix = np.random.default_rng(4).normal(size=(126, 6)).astype(np.float32) / 3
        self.images, self.lam, self.shared = images, lam, shared

    def forward(self, z: Any) -> Any:
        return np.tanh(z @ self.matrix.T).reshape(len(z), *SHAPE[1:])

    def backward(self, image: Any, cotangent: Any) -> Any:
        return ((1 - image**2) * cotangent).reshape(len(image), -1) @ self.matrix

    def evaluate(self, query: Any, items: Any, stage: Any) -> Evaluation:
        z, mask = query
        g = self.forward(z)
        scale = np.full(len(z), 1 / g[0].size, np.float32)
        cotangent, slope, value = np.empty_like(g), np.empty_like(mask), np.empty(len(z))
        NumpyKernels().rgi_gradient(
            self.images[items], g, mask, self.lam[items], scale, cotangent=cotangent,
            mask_gradient=slope, objective=value,
        )  # fmt: skip
        return Evaluation(value, (self.backward(g, cotangent), slope))


def _inversion(kernels: Any, numpy_pass: Any, generator: Any, ends: Ends) -> DeviceInversion:
    empty = kernels.device.empty
    z, gradient, image, cotangent = empty((5, 6)), empty((5, 6)), empty(SHAPE), empty(SHAPE)
    forward = numpy_pass({"z": z}, {"image": image}, lambda z: {"image": generator.forward(z)})
    backward = numpy_pass(
        {"image": image, "cotangent": cotangent},
        {"gradient": gradient},
        lambda image, cotangent: {"gradient": generator.backward(image, cotangent)},
    )
    passes = GeneratorPasses(forward, backward, z, image, cotangent, gradient)
    return DeviceInversion(kernels, passes, ends, shared=generator.shared)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("every", [1, 7])
def test_inversion_descends_as_on_the_host(
    kernels: Any, numpy_pass: Any, every: int, shared: bool
) -> None:
    rng = np.random.default_rng(2)
    images = rng.uniform(-0.9, 0.9, SHAPE).astype(np.float32)
    images[4, 0, 0, 0] = np.inf  # ends at once, and alone
    z = rng.normal(size=(5, 6)).astype(np.float32)
    lam = np.linspace(0.05, 0.5, 5, dtype=np.float32)
    generator, limits = _Generator(images, lam, shared), Limits(25)
    mask = np.zeros((5, 1 if shared else 2, 7, 9), np.float32)
    solver = Adam(NumpyKernels(), (0.1, 0.1))
    expected = run_on_host(generator, solver, (z, mask), limits)
    step = _inversion(kernels, numpy_pass, generator, Ends.of(limits))
    step.start(images, z, lam)
    found = step.outcome(run(kernels.device, Replay(kernels.device, step), Schedule(every)))
    assert found.status == expected.status
    np.testing.assert_array_equal(found.steps, expected.steps)
    # Adam divides by the size of the gradient: where that is near 0, roundings are steps.
    for ours, theirs in zip(found.trace[:4], expected.trace[:4], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    np.testing.assert_allclose(found.best[0][:4], expected.best[0][:4], atol=5e-3)
    apart = np.abs(found.best[1][:4] - expected.best[1][:4])
    assert np.mean(apart < 5e-3) > 0.99


class _Cliff(_Generator):
    """Its gradient is not finite where the image of the third item is."""

    def backward(self, image: Any, cotangent: Any) -> Any:
        found = super().backward(image, cotangent)
        if len(found) == 5:
            found[2, 1] = np.nan
        return found


def test_an_item_whose_gradient_is_not_finite_ends_alone(kernels: Any, numpy_pass: Any) -> None:
    rng = np.random.default_rng(2)
    images = rng.uniform(-0.9, 0.9, SHAPE).astype(np.float32)
    z = rng.normal(size=(5, 6)).astype(np.float32)
    lam, limits = np.full(5, 0.2, np.float32), Limits(4)
    generator, mask = _Cliff(images, lam, True), np.zeros((5, 1, 7, 9), np.float32)
    solver = Adam(NumpyKernels(), (0.1, 0.1))
    expected = run_on_host(generator, solver, (z, mask), limits)
    step = _inversion(kernels, numpy_pass, generator, Ends.of(limits))
    step.start(images, z, lam)
    found = step.outcome(run(kernels.device, Replay(kernels.device, step), Schedule(2)))
    assert found.status == expected.status
    assert [s is Status.NON_FINITE for s in found.status] == [False, False, True, False, False]
    np.testing.assert_array_equal(found.steps, expected.steps)
    assert found.value[2] == expected.value[2] == np.inf


class _Clock:
    """Moves on by a number of seconds whenever the stream has run a pass."""

    def __init__(self, engine: Any, seconds: float) -> None:
        self.engine, self.seconds = engine, seconds

    def __call__(self) -> float:
        return self.engine.runs * self.seconds


@pytest.mark.parametrize(("deadline", "most"), [(0.0, 0), (0.5, 1), (5.0, 5), (12.5, 12)])
def test_the_deadline_is_kept(kernels: Any, numpy_pass: Any, deadline: float, most: int) -> None:
    settings = AlternationSettings(lam=0.2, precision=0.7, lower=-2.0, upper=2.0)
    step = _alternation(kernels, numpy_pass, settings, Ends(40, least=-1.0))
    step.start(_images())
    clock = _Clock(step.engine, 1.0)
    spent = run(kernels.device, Replay(kernels.device, step), Schedule(4, deadline), clock=clock)
    assert spent <= max(deadline, 1.0)  # how long a first step takes is not known before
    assert step.engine.runs == most
    assert set(step.outcome(spent).status) == {Status.DEADLINE}


def test_the_host_looks_once_for_every_piece(kernels: Any, driver: Any, numpy_pass: Any) -> None:
    settings = AlternationSettings(lam=0.2, precision=0.7, lower=-2.0, upper=2.0)
    step = _alternation(kernels, numpy_pass, settings, Ends(41, least=-1.0))
    step.start(_images())
    waits = driver.waits
    run(kernels.device, Replay(kernels.device, step), Schedule(10))
    assert driver.waits == waits + 1  # at the end; before, events of pieces that lie behind
    assert step.engine.runs == 41


def test_capture_refuses_what_cuda_would(kernels: Any, driver: Any) -> None:
    x = kernels.device.to_device(np.ones((2, 3), np.float32))
    sums = kernels.device.empty((2,), np.float64), kernels.device.empty((2,), np.float64)
    driver.begin_capture()
    with pytest.raises(BackendError, match="Run the step once"):
        kernels.norms(x, squared=sums[0], largest=sums[1])  # its scratch is not there yet
    with pytest.raises(BackendError, match="host memory"):
        kernels.norms(np.ones((2, 3), np.float32), squared=sums[0], largest=sums[1])
    driver.abandon_capture()
    kernels.norms(x, squared=sums[0], largest=sums[1])
    np.testing.assert_allclose(kernels.device.to_host(sums[0]), [3, 3])


def test_a_failed_capture_leaves_the_stream_usable(
    kernels: Any, driver: Any, numpy_pass: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AlternationSettings(lam=0.2, precision=0.7, lower=-2.0, upper=2.0)
    step = _alternation(kernels, numpy_pass, settings, Ends(5))
    step.start(_images())
    replay = Replay(kernels.device, step)
    replay.repeat(1)
    before = step.enqueue
    monkeypatch.setattr(step, "enqueue", lambda: (before(), driver.synchronise()))
    with pytest.raises(BackendError, match="while a graph is captured"):
        replay.repeat(1)
    assert not driver.capturing
    kernels.synchronise()


def test_images_of_another_size_are_refused(kernels: Any, numpy_pass: Any) -> None:
    settings = AlternationSettings(lam=0.2, precision=0.7, lower=-2.0, upper=2.0)
    step = _alternation(kernels, numpy_pass, settings, Ends(5))
    with pytest.raises(ShapeError, match="images must be"):
        step.start(_images()[:4])
