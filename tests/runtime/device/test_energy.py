"""Projection with an autoencoder on the device: the same ends as on the host, whatever is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend

from unblemish.bundle import Bundle
from unblemish.errors import BackendError
from unblemish.kernels import default_kernels
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.autoencoders import energy_method, load_autoencoder
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.device.energy import EnergyOnDevice
from unblemish.runtime.device.engines import DeviceEngines, device_engines
from unblemish.runtime.device.engines.passes import PassPair, StreamPass
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.energy import EnergyMethod, Projected

MakeBundle = Callable[..., Bundle]
SIDE = 16

BLIND: dict[str, dict[str, Any]] = {
    "l2": {"alpha": 0.3},
    "plain step": {"step": "plain", "alpha": 0.05},
    "adam": {"optimiser": "adam", "alpha": 0.01},
    "dssim": {"loss": "dssim", "alpha": 2.0},
    "one variance": {"loss": "gaussian", "gamma": 0.2, "alpha": 0.02},
    "a variance per element": {"loss": "gaussian", "typical_gamma": 0.2, "alpha": 0.02},
    "a level to stop at": {"alpha": 0.3, "training_losses": ((0.0, 1.0), (1.0, 9.0))},
    "until it is flat": {"alpha": 0.3, "tolerance": 0.02},
}


class Both:
    """A method on the host, and its device side."""

    def __init__(
        self, bundle: Bundle, kernels: CudaKernels, schedule: str, lam: float | None = None
    ) -> None:
        backend = OrtBackend(1)
        self.backend = EmulatedBackend()
        engine = load_autoencoder(bundle, backend, gradient=schedule == "paper")
        self.method = energy_method(bundle, engine, default_kernels(1), schedule, lam)
        engines = device_engines(self.backend, kernels)
        assert engines is not None
        self.device = EnergyOnDevice(engines, bundle)

    def solve(self, images: Any, **limits: Any) -> tuple[Projected, Projected]:
        """Of the host, and of the device, whose engines must have run."""
        expected = self.method.solve(images, **limits)
        found = self.device.solve(_without_engine(self.method), images, **limits)
        return expected, found


def _without_engine(method: EnergyMethod) -> EnergyMethod:
    """So that nothing can go to the host unseen."""
    return EnergyMethod(
        None, method.kernels, method.settings, method.low, method.high, method.schedule  # type: ignore[arg-type]
    )  # fmt: skip


def _images(count: int, channels: int = 1, seed: int = 0) -> Any:
    """Smooth images in [0, 1] with blemishes of different size; the second has none."""
    rng = np.random.default_rng(seed)
    wave = np.cos(np.pi * np.outer(np.arange(SIDE) + 0.5, np.arange(3)) / SIDE)
    weights = rng.uniform(-0.06, 0.06, (count, channels, 3, 3))
    x = 0.5 + np.einsum("ia,ncab,jb->ncij", wave, weights, wave)
    for item in range(count):
        if item != 1:
            x[item, :, 5 : 7 + item % 4, 6:9] = 0.95
    return x.astype(np.float32)


def _same(found: Projected, expected: Projected, share: float = 1e-4) -> None:
    """Values within a share of themselves; images within 2e-4, or 1e-2 for larger shares."""
    assert found.status == expected.status
    np.testing.assert_array_equal(found.steps, expected.steps)
    atol = 2e-4 if share <= 1e-4 else 1e-2
    np.testing.assert_allclose(found.images, expected.images, rtol=0, atol=atol)
    pairs = zip((found.value, *found.trace), (expected.value, *expected.trace), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=share, atol=0.2 * share)


@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize(("count", "channels"), [(1, 3), (8, 1)])
def test_a_batch_ends_as_on_the_host(
    make_energy_bundle: MakeBundle,
    kernels: CudaKernels,
    name: str,
    schedule: str,
    count: int,
    channels: int,
) -> None:
    settings = {"lam": 0.02, "tolerance": 1e-4, **BLIND[name]}
    bundle = make_energy_bundle(channels, energy=settings, vae=name == "a variance per element")
    expected, found = Both(bundle, kernels, schedule).solve(_images(count, channels), max_steps=15)
    # Adam divides by the size of the gradient: where that is near 0, roundings are steps.
    _same(found, expected, 1e-3 if name == "adam" else 1e-4)
    assert expected.steps.max() > 1
    if schedule == "fast" or name in ("a level to stop at", "until it is flat"):
        assert count == 1 or len(set(expected.steps)) > 1  # somebody ends before the others


def _holes(count: int) -> Any:
    """A hole in each image, of different size, at an edge too; none in the third."""
    free = np.zeros((count, 1, SIDE, SIDE), np.bool_)
    for item in range(count):
        if item != 2:
            free[item, 0, 4 : 8 + item % 5, 5:9] = True
            free[item, 0, 0 : item % 3, 12:] = True
    return free


@pytest.mark.parametrize("name", ["l2", "adam", "dssim", "a variance per element"])
@pytest.mark.parametrize(("count", "channels"), [(1, 3), (8, 1)])
def test_the_paper_s_schedule_fills_holes_as_on_the_host(
    make_energy_bundle: MakeBundle, kernels: CudaKernels, name: str, count: int, channels: int
) -> None:
    settings = {**BLIND[name], **({"alpha": 0.05} if name == "dssim" else {})}
    bundle = make_energy_bundle(channels, energy=settings, vae=name == "a variance per element")
    both = Both(bundle, kernels, "paper", 0.0)
    images, free = _images(count, channels), _holes(count)
    expected, found = both.solve(images, free=free, max_steps=12)
    _same(found, expected, 1e-3 if name == "adam" else 1e-4)
    known = ~np.broadcast_to(free, images.shape)
    np.testing.assert_array_equal(found.images[known], images[known])
    assert (found.images != images).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_fast_schedule_fills_holes_as_on_the_host(
    make_energy_bundle: MakeBundle, kernels: CudaKernels, channels: int
) -> None:
    """One image at a time: on the host the planes of a batch settle together, here each alone."""
    images, free = _images(5, channels, seed=1), _holes(5)
    images[np.broadcast_to(free, images.shape)] = 0.5
    both = Both(make_energy_bundle(channels), kernels, "fast", 0.0)
    together = both.solve(images, free=free)[1]
    for item in range(5):
        rows = slice(item, item + 1)
        expected, found = both.solve(images[rows], free=free[rows])
        assert found.status == expected.status == (Status.CONVERGED,)
        assert abs(int(found.steps[0]) - int(expected.steps[0])) <= 1
        np.testing.assert_allclose(found.images, expected.images, rtol=0, atol=2e-3)
        np.testing.assert_allclose(found.trace[0][0], expected.trace[0][0], rtol=1e-4, atol=1e-9)
        np.testing.assert_array_equal(together.images[rows], found.images)
        assert together.steps[item] == found.steps[0]
    known = ~np.broadcast_to(free, images.shape)
    np.testing.assert_array_equal(together.images[known], images[known])


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_further_batches_and_weights_need_no_more_memory(
    make_energy_bundle: MakeBundle, kernels: CudaKernels, schedule: str
) -> None:
    bundle = make_energy_bundle()
    both = Both(bundle, kernels, schedule)
    driver: Any = kernels.device.driver
    for count in (8, 3):
        both.solve(_images(count), max_steps=6)
    allocated, launched = driver.allocations, len(driver.launched)
    for seed, count in enumerate((3, 8, 8, 3), start=4):
        expected, found = both.solve(_images(count, seed=seed), max_steps=6)
        _same(found, expected)
    assert driver.allocations == allocated
    assert len(driver.launched) == launched  # every iteration was a replay


def test_steps_of_many_settings_are_not_kept_for_ever(
    make_energy_bundle: MakeBundle, kernels: CudaKernels
) -> None:
    """As calibration asks for them, weight after weight."""
    both, images = Both(make_energy_bundle(), kernels, "fast"), _images(2)
    driver: Any = kernels.device.driver
    pieces = []
    for weight in np.linspace(0.01, 0.1, 40):
        settings = both.method.settings.model_copy(update={"lam": float(weight)})
        one = EnergyMethod(both.method.engine, both.method.kernels, settings, 0.0, 1.0)
        _same(both.device.solve(one, images, max_steps=2), one.solve(images, max_steps=2))
        pieces.append(len(driver.live))
    assert max(pieces[20:]) <= pieces[20]


class _Timed:
    """A pass that takes a second."""

    def __init__(self, inner: StreamPass, engines: _TimedEngines) -> None:
        self.inputs, self.outputs, self.capturable = inner.inputs, inner.outputs, inner.capturable
        self._inner, self._engines = inner, engines

    def enqueue(self, stream: int) -> None:
        self._inner.enqueue(stream)
        driver: Any = self._engines.kernels.device.driver
        driver.enqueue(self._engines.tick)


class _TimedEngines(DeviceEngines):
    now = 0.0

    def tick(self) -> None:
        self.now += 1.0

    def single(self, path: str, inputs: Mapping[str, DeviceArray]) -> StreamPass:
        return _Timed(super().single(path, inputs), self)

    def pair(self, forward: str, backward: str, inputs: Mapping[str, DeviceArray]) -> PassPair:
        found = super().pair(forward, backward, inputs)
        return replace(found, forward=_Timed(found.forward, self))


@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize(("seconds", "most"), [(0.0, 0), (1.5, 1), (4.2, 4)])
def test_the_deadline_is_kept(
    make_energy_bundle: MakeBundle, kernels: CudaKernels, schedule: str, seconds: float, most: int
) -> None:
    bundle = make_energy_bundle(energy={"tolerance": 0.0, "alpha": 0.3})
    both, images = Both(bundle, kernels, schedule, lam=0.02), _images(3)
    timed = _TimedEngines(kernels, EmulatedBackend().on_device(kernels)._load)
    device, method = EnergyOnDevice(timed, bundle), _without_engine(both.method)

    def clock() -> float:
        return timed.now

    whole = device.solve(method, images, max_steps=9, clock=clock)
    assert whole.steps[0] > most  # made, captured, and longer than what follows
    began = timed.now
    part = device.solve(method, images, max_steps=9, clock=clock, deadline=began + seconds)
    assert timed.now <= began + seconds
    assert part.status[0] is Status.DEADLINE
    assert part.steps[0] == most
    np.testing.assert_allclose(part.trace[0], whole.trace[0][:most], rtol=1e-6)
    if most == 0:
        np.testing.assert_array_equal(part.images, images)


class _SmallEngines(DeviceEngines):
    """Engines that were made for so many images at most."""

    most = 1

    def single(self, path: str, inputs: Mapping[str, DeviceArray]) -> Any:
        self._check(inputs)
        return super().single(path, inputs)

    def pair(self, forward: str, backward: str, inputs: Mapping[str, DeviceArray]) -> Any:
        self._check(inputs)
        return super().pair(forward, backward, inputs)

    def _check(self, inputs: Mapping[str, DeviceArray]) -> None:
        if inputs["image"].shape[0] > self.most:
            raise BackendError("no engine was made for so many images.")


@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize(
    ("most", "said"),
    [
        (1, ["batches of 3 are halved", "batches of 2 are halved"]),
        (
            0,
            [
                "batches of 3 are halved",
                "images are searched on the host",
                "batches of 2 are halved",
            ],
        ),
    ],
)
def test_batches_that_no_engine_was_made_for_are_halved_and_images_left_to_the_host(
    make_energy_bundle: MakeBundle,
    kernels: CudaKernels,
    caplog: pytest.LogCaptureFixture,
    schedule: str,
    most: int,
    said: list[str],
) -> None:
    bundle = make_energy_bundle()
    both = Both(bundle, kernels, schedule)
    driver: Any = kernels.device.driver
    small = _SmallEngines(kernels, device_engines(both.backend, kernels)._load)  # type: ignore[union-attr]
    small.most = most
    device = EnergyOnDevice(small, bundle)
    with caplog.at_level(logging.INFO, "unblemish"):
        for _ in range(2):
            expected = both.method.solve(_images(3), max_steps=6)
            _same(device.solve(both.method, _images(3), max_steps=6), expected)
    assert bool(driver.launched) == (most > 0)
    assert [r.message for r in caplog.records] == [
        f"{line}: no engine was made for so many images." for line in said
    ]
