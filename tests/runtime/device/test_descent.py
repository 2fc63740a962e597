"""Steps of energy projection on the device alone: closed forms, failures, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ShapeError
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.device import DeviceBlending, DeviceDescent, Replay, Schedule, run
from unblemish.runtime.device.engines.passes import PassPair
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.steps.descent import DescentSettings
from unblemish.runtime.inspection import Status
from unblemish.runtime.membrane import extend, roughness
from unblemish.runtime.solvers.loop import Limits
from unblemish.runtime.solvers.loop import run as run_on_host
from unblemish.runtime.solvers.projected_step import ProjectedStep
from unblemish.runtime.solvers.protocol import Evaluation

SHAPE = (3, 2, 9, 8)


class _Constant:
    """An engine that any driver can run and capture: the same image of everything."""

    capturable = True

    def __init__(self, device: Any, image: Any) -> None:
        self.inputs = {"image": device.empty(image.shape)}
        self.outputs = {"reconstruction": device.empty(image.shape)}
        self._device, self._image = device, device.to_device(image)

    def enqueue(self, stream: int) -> None:
        self._device.copy(self.outputs["reconstruction"], self._image)


class _Nothing:
    """The way back of `_Constant`: no gradient."""

    capturable = True

    def __init__(self, device: Any, shape: tuple[int, ...]) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs = {"grad_image": device.zeros(shape)}

    def enqueue(self, stream: int) -> None:
        pass


def _constant_pair(device: Any, image: Any) -> PassPair:
    forward, backward = _Constant(device, image), _Nothing(device, image.shape)
    cotangents = {"reconstruction": device.zeros(image.shape)}
    return PassPair(forward, backward, cotangents, {"image": backward.outputs["grad_image"]})


def _images(seed: int = 0) -> Any:
    return np.random.default_rng(seed).random(SHAPE).astype(np.float32)


def _tuned_steps(x0: Any, made: Any, alpha: float, lam: float, count: int) -> tuple[Any, Any]:
    """Equation 8 in float64, with a reconstruction that is always the same."""
    x, start, made = (a.astype(np.float64) for a in (x0.copy(), x0, made))
    energies = []
    for _ in range(count):
        apart = x - made
        energies.append(np.square(apart).sum((1, 2, 3)) + lam * np.abs(x - start).sum((1, 2, 3)))
        slope = 2 * apart + lam * np.sign(x - start)
        x = np.clip(x - alpha * apart**2 * slope, 0, 1)
    return x, np.stack(energies, axis=1)


def test_equation_8_where_the_reconstruction_is_always_the_same(any_kernels: Any) -> None:
    device, x0, made = any_kernels.device, _images(), _images(1)
    settings = DescentSettings(0.05, 0.4, tuned=True, adam=False, lower=0.0, upper=1.0)
    step = DeviceDescent(any_kernels, _constant_pair(device, made), settings, Ends(12))
    step.start(x0)
    replay = Replay(device, step)
    found = step.outcome(run(device, replay, Schedule(5)))
    assert replay.captured
    _, energies = _tuned_steps(x0, made, 0.4, 0.05, 12)
    np.testing.assert_allclose(np.stack(found.trace), energies, rtol=1e-5)
    best, _ = _tuned_steps(x0, made, 0.4, 0.05, 11)
    np.testing.assert_allclose(found.best[0], best, atol=1e-5)
    assert set(found.status) == {Status.MAX_STEPS}


def test_a_hole_is_closed_where_the_reconstruction_is_always_the_same(any_kernels: Any) -> None:
    device, x0, made = any_kernels.device, _images(), _images(1)
    hole = np.zeros((3, 1, *SHAPE[2:]), np.bool_)
    hole[0, 0, 2:5, 1:6], hole[2, 0, :4, :3] = True, True
    step = DeviceBlending(
        any_kernels, _Constant(device, made), Ends(20, least=1e-3), lower=0.0, upper=1.0
    )
    step.start(x0, hole)
    found = step.outcome(run(device, Replay(device, step), Schedule(5)))
    expected = np.where(hole, np.clip(made + extend(x0 - made, hole), 0, 1), x0)
    np.testing.assert_allclose(found.best[0], expected, atol=2e-3)
    first = [trace[0] for trace in found.trace]
    np.testing.assert_allclose(first, roughness(x0 - made, hole), rtol=1e-5)
    assert set(found.status) == {Status.CONVERGED}
    assert found.steps.tolist() == [2, 1, 2]  # the second has no hole


class _Identity:
    """f(x) = x / 2 on the host, its gradient not finite in one item from some step on."""

    stages = 1

    def __init__(self, images: Any, bad: int, since: int) -> None:
        self.images, self.bad, self.since, self.calls = images, bad, since, 0

    def pulled(self, cotangent: Any, items: Any) -> Any:
        self.calls += 1
        gradient = cotangent / 2
        if self.calls > self.since:
            gradient[np.asarray(items) == self.bad, 0, 0, 0] = np.inf
        return gradient

    def evaluate(self, query: Any, items: Any, stage: Any) -> Evaluation:
        (x,) = query
        rows = len(x)
        cotangent, value = np.empty_like(x), np.empty(rows)
        NumpyKernels().residual_l2(
            x, x / 2, np.ones(rows, np.float32), cotangent=cotangent, objective=value
        )
        away = np.abs(x - self.images[items]).sum(axis=(1, 2, 3), dtype=np.float64)
        gradient = self.pulled(cotangent, items), cotangent, x / 2, value.astype(np.float32)
        return Evaluation(value + 0.1 * away, gradient)


@pytest.mark.parametrize("capturable", [True, False])
@pytest.mark.parametrize("adam", [True, False])
def test_a_gradient_that_is_not_finite_ends_its_item_alone(
    kernels: Any, numpy_pass: Any, capturable: bool, adam: bool
) -> None:
    images, limits = _images(2), Limits(9)
    host = _Identity(images, bad=1, since=4)
    solver = ProjectedStep(
        NumpyKernels(), 0.1, 0.05, tuned=False, adam=adam, stop=None, lower=-1.0, upper=1.0,
        direct_factor=-1.0,
    )  # fmt: skip
    expected = run_on_host(host, solver, (images,), limits)
    ours = _Identity(images, bad=1, since=4)
    x, made, cotangent, gradient = (kernels.device.zeros(SHAPE) for _ in range(4))
    forward = numpy_pass(
        {"image": x}, {"reconstruction": made}, lambda image: {"reconstruction": image / 2}
    )
    backward = numpy_pass(
        {"ct": cotangent},
        {"gradient": gradient},
        lambda ct: {"gradient": ours.pulled(ct, np.arange(3))},
        capturable,
    )
    pair = PassPair(forward, backward, {"reconstruction": cotangent}, {"image": gradient})
    settings = DescentSettings(0.1, 0.05, tuned=False, adam=adam, lower=-1.0, upper=1.0)
    step = DeviceDescent(kernels, pair, settings, Ends.of(limits))
    step.start(images)
    replay = Replay(kernels.device, step)
    found = step.outcome(run(kernels.device, replay, Schedule(3)))
    assert replay.captured == capturable
    assert found.status == expected.status
    assert found.status[1] is Status.NON_FINITE
    np.testing.assert_array_equal(found.steps, expected.steps)
    assert found.steps.tolist() == [9, 5, 9]
    np.testing.assert_allclose(found.best[0], expected.best[0], atol=1e-5)
    for ours_trace, theirs in zip(found.trace, expected.trace, strict=True):
        np.testing.assert_allclose(ours_trace, theirs, rtol=1e-5)


def test_other_shapes_and_missing_holes_are_refused(any_kernels: Any) -> None:
    device, x = any_kernels.device, _images()
    settings = DescentSettings(0.05, 0.4, tuned=False, adam=False, lower=0.0, upper=1.0)
    pair, hole = _constant_pair(device, x), np.ones((3, 1, *SHAPE[2:]), np.bool_)
    blind = DeviceDescent(any_kernels, pair, settings, Ends(2))
    known = DeviceDescent(any_kernels, pair, settings, Ends(2), known=True)
    blending = DeviceBlending(any_kernels, _Constant(device, x), Ends(2), lower=0.0, upper=1.0)
    for step, given in (
        (blind, (x[:2],)),
        (blind, (x, hole)),
        (known, (x, None)),
        (known, (x, hole[:1])),
        (blending, (x, None)),
        (blending, (x[:2], hole[:2])),
    ):
        with pytest.raises(ShapeError, match="must be"):
            step.start(*given)
