"""F2PAD's descent on the device against that of the host, whose rules and results it shares."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend
from tiny_detectors import METHODS, normal_frames, spoilt, tiny_detector

from unblemish.bundle import Bundle
from unblemish.errors import BackendError
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.device.f2pad import F2padOnDevice
from unblemish.runtime.found import Found
from unblemish.runtime.inspection import Status
from unblemish.runtime.inspector import Inspector

Make = Callable[..., Bundle]
# Both sides round to float32 in every step. Adan divides a gradient by its own size: where that is
# near 0 roundings are steps, which later values show.
FIRST, LATER = 2e-6, 1e-2


@pytest.fixture(scope="module")
def make_detector(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_detector(method, camera=1, **settings): see `tiny_detector`; each is made once."""

    @cache
    def make(method: str, camera: int = 1, **settings: Any) -> Bundle:
        paper = {"max_steps": 6, "radius": 1, "beta0": 30.0, "step_size": 0.4, "dilation": 2}
        paper |= {"decrease": 1e-6, **settings}
        return tiny_detector(tmp_path_factory.mktemp("detector"), method, camera, **paper)

    return make


def opened(bundle: Bundle, kernels: Any, backend: Any = None) -> tuple[Inspector, Inspector]:
    options: dict[str, Any] = {"refine": "f2pad", "schedule": "paper"}
    host = Inspector.open(bundle, backend="onnxruntime", threads=1, **options)
    backend = backend or EmulatedBackend()
    return host, Inspector.open(bundle, backend=backend, kernels=kernels, **options)


def held(inspector: Inspector) -> list[Any]:
    """The steps that an inspector keeps on the device."""
    on_device = inspector._search._f2pad._search.elsewhere  # type: ignore[union-attr]
    assert isinstance(on_device, F2padOnDevice)
    return list(on_device._held.values())


def same(found: Found, expected: Found) -> None:
    assert (found.status, found.steps) == (expected.status, expected.steps)
    size = np.abs(expected.trace).max()
    np.testing.assert_allclose(found.trace[:3], expected.trace[:3], rtol=0, atol=FIRST * size)
    np.testing.assert_allclose(found.trace, expected.trace, rtol=0, atol=LATER * size)
    assert np.mean(found.mask != expected.mask) < 2e-3
    apart = np.abs(found.score - expected.score)
    assert apart.mean() < 1e-4
    assert np.abs(found.restored.astype(float) - expected.restored).max() <= 4  # of 255


@pytest.mark.parametrize(
    ("method", "camera"), [*((method, 1) for method in METHODS), ("patchcore", 3)]
)
def test_descents_are_those_of_the_host(
    make_detector: Make, any_engines: Any, method: str, camera: int
) -> None:
    host, device = opened(make_detector(method, camera), *any_engines)
    frame = spoilt(normal_frames(1, camera, seed=9)[0])
    found, expected = device.search(frame), host.search(frame)
    same(found, expected)
    assert expected.mask.any()
    assert found.steps == 6
    (one,) = held(device)
    assert one.replay.captured == one.step.capturable


def test_a_captured_step_serves_the_next_frames_of_a_size(
    make_detector: Make, kernels: Any, driver: Any
) -> None:
    host, device = opened(make_detector("cflow"), kernels)
    frames = normal_frames(3, seed=3)
    device.search(spoilt(frames[0], (10, 20, 30, 44)))
    (first,) = held(device)
    allocations = driver.allocations
    for frame in (spoilt(frames[1]), spoilt(frames[2], (40, 60, 10, 22))):
        same(device.search(frame), host.search(frame))
    assert held(device) == [first]
    assert driver.allocations == allocations
    large = spoilt(np.repeat(np.repeat(frames[0], 2, axis=0), 2, axis=1), (60, 80, 100, 124))
    same(device.search(large), host.search(large))
    assert len(held(device)) == 2


def test_engines_that_cannot_be_captured_are_put_on_the_stream_again(
    make_detector: Make, kernels: Any
) -> None:
    host, device = opened(make_detector("cflow"), kernels, EmulatedBackend(capturable=False))
    frame = spoilt(normal_frames(1, seed=9)[0])
    same(device.search(frame), host.search(frame))
    (one,) = held(device)
    assert not one.replay.captured


def test_items_end_where_they_change_little_as_on_the_host(
    make_detector: Make, kernels: Any
) -> None:
    """Three tiles in a batch, of which one ends before the others."""
    bundle = make_detector("cflow", tiles=True, max_steps=24, decrease=2.45)
    host, device = opened(bundle, kernels)
    left, right = normal_frames(2, seed=5)
    frame = np.concatenate([spoilt(left), spoilt(right, (10, 14, 20, 26))], axis=1)
    found, expected = device.search(frame), host.search(frame)
    same(found, expected)
    assert found.status is Status.CONVERGED
    assert 6 <= found.steps < 24
    (one,) = held(device)
    assert one.step.progress.batch == 3
    steps = one.step.outcome(0.0).steps
    assert len(set(steps)) > 1  # or else nobody ended before the others


def test_deadlines_are_kept(make_detector: Make, kernels: Any) -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            self.now += 0.01
            return self.now

    bundle = make_detector("cflow", max_steps=300)
    device = Inspector.open(
        bundle, backend=EmulatedBackend(), kernels=kernels, refine="f2pad", schedule="paper",
        clock=Clock(),
    )  # fmt: skip
    found = device.search(spoilt(normal_frames(1)[0]), deadline_ms=500)
    assert found.status is Status.DEADLINE
    assert 0 < found.steps < 300


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_network_that_gives_nan_ends_at_once(make_detector: Make, kernels: Any) -> None:
    _, device = opened(make_detector("padim"), kernels)
    frame = spoilt(normal_frames(1)[0])
    search: Any = device._search
    job = search._prepare(frame)
    maps = search._detector.plain(job.images)
    mean = search._detector.scoring.model._score.keywords["mean"]
    kernels.device.upload(mean, np.full(mean.shape, np.nan, np.float32))
    refined = search._refiner().refine(job.unit, job.images, maps)
    assert refined.status is Status.NON_FINITE
    assert refined.steps == 1
    assert np.isfinite(refined.residual).all()
    assert np.isfinite(refined.restored).all()


class WithoutWayBack(EmulatedBackend):
    """Its engines know the way there alone."""

    def on_device(self, kernels: CudaKernels) -> DeviceEngines:
        engines = super().on_device(kernels)

        def pair(*_: Any) -> Any:
            raise BackendError("no engine for the way back")

        engines.pair = pair  # type: ignore[method-assign]
        return engines


def test_what_the_engines_were_not_made_for_descends_on_the_host(
    make_detector: Make, kernels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_detector("patchcore")
    options: dict[str, Any] = {"refine": "f2pad", "schedule": "paper"}
    host = Inspector.open(bundle, backend="onnxruntime", threads=1, **options)
    device = Inspector.open(bundle, backend=WithoutWayBack(), kernels=kernels, **options)
    frame = spoilt(normal_frames(1, seed=9)[0])
    with caplog.at_level(logging.WARNING, "unblemish"):
        for _ in range(2):
            same(device.search(frame), host.search(frame))
    assert len(caplog.records) == 1
    assert "descends on the host for 1 x 1 x 72 x 96: no engine for the way" in caplog.text
