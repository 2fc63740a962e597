"""Whole searches with a generator on the device against those of the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend
from numpy.typing import NDArray
from tensorrt_results import compute

from unblemish import Inspector
from unblemish.bundle import Bundle
from unblemish.errors import BackendError
from unblemish.export.engines.options import EngineOptions
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.backends import open_backend
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.backends.protocol import Backend
from unblemish.runtime.device.engines import DeviceEngines, DeviceGraph
from unblemish.runtime.device.engines.passes import StreamPass
from unblemish.runtime.device.finetuner import DeviceFinetuner
from unblemish.runtime.energy_search import EnergySearch
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.rgi import Solution, limits_for
from unblemish.runtime.options import SearchOptions
from unblemish.runtime.search import Search

Frames = Callable[[int], list[NDArray[Any]]]
Device = tuple[Backend, CudaKernels]
MakeBundle = Any

EXTRAS = {"discriminator_weight": 0.1, "feature_weight": 0.1, "latent_weight": 0.1}


@pytest.fixture
def frames(generate: Any) -> Frames:
    """frames(count): parts of the tiny generator, every second with a blemish."""

    def make(count: int) -> list[NDArray[Any]]:
        rng = np.random.default_rng(5)
        images = generate(rng.standard_normal((count, 4))).transpose(0, 2, 3, 1).astype(np.float32)
        for k in range(0, count, 2):
            images[k, 3 : 6 + k % 5, 6:10] = 0.98 if images[k].mean() < 0.5 else 0.02
        return list(images)

    return make


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """Engines and kernels of the double, and ONNX Runtime's on the GPU where there is one."""
    if request.param == "gpu":
        pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
        return open_backend("ort-cuda", 1), CudaKernels()
    return EmulatedBackend(), request.getfixturevalue("kernels")


def both(bundle: Bundle, device: Device, **options: Any) -> tuple[Search, Search]:
    """The search on the CPU, and the one on the device."""
    backend, kernels = device
    host = Search(bundle, SearchOptions(backend="onnxruntime", threads=1, **options))
    ours = Search(bundle, SearchOptions(backend=backend, **options), kernels=kernels)
    assert ours._kernels.name != "cuda"  # what stays on the host
    return host, ours


def same(found: Any, expected: Any) -> None:
    """As on the host, but for roundings: late steps move by them alone, and may be one or two more.

    The first ten steps are told apart by sums of another order, 1e-7 of what they begin with.
    """
    assert found.status == expected.status
    close = {"rtol": 1e-4, "atol": 1e-6 * expected.trace[0]}
    np.testing.assert_allclose(found.trace[:10], expected.trace[:10], **close)
    np.testing.assert_allclose(found.restored, expected.restored, atol=2e-3)
    assert found.objective == pytest.approx(expected.objective, rel=1e-4, abs=1e-10)
    assert ((found.mask > 0.5) != (expected.mask > 0.5)).mean() < 0.01


FAST = {
    "l2": {},
    "l2 by element": {"rgi": {"mask": "element"}},
    "l1": {"rgi": {"loss": "l1", "lam": 0.1}},
    "encoder": {"rgi": {"start": "encoder"}},
    "one start": {"rgi": {"start": "zero"}},
    "all terms": {"rgi": EXTRAS, "extras": True},
}


@pytest.mark.parametrize("case", FAST)
def test_the_fast_search_is_that_of_the_host(
    make_bundle: MakeBundle, device: Device, frames: Frames, case: str
) -> None:
    host, ours = both(make_bundle(**FAST[case]), device)
    for found, expected in zip(ours.many(frames(3)), host.many(frames(3)), strict=True):
        same(found, expected)
        assert found.status is Status.CONVERGED
    device = ours._device
    assert device is not None
    assert device._sizes
    assert not device._refused


PAPER = {
    "l2": {},
    "l1": {"rgi": {"loss": "l1", "lam": 0.1}},
    "all terms": {"rgi": EXTRAS, "extras": True},
}


@pytest.mark.parametrize("case", PAPER)
def test_the_papers_schedule_is_that_of_the_host(
    make_bundle: MakeBundle, device: Device, frames: Frames, case: str
) -> None:
    host, ours = both(make_bundle(**PAPER[case]), device, schedule="paper", max_steps=15)
    for found, expected in zip(ours.many(frames(3)), host.many(frames(3)), strict=True):
        same(found, expected)
        assert found.status is Status.MAX_STEPS
    assert not ours._device._refused  # type: ignore[union-attr]


@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize("refine", ["l2", "l1", "anogan"])
def test_searches_without_a_mask_are_those_of_the_host(
    make_bundle: MakeBundle, device: Device, frames: Frames, refine: str, schedule: str
) -> None:
    bundle = make_bundle(extras=True)
    host, ours = both(bundle, device, refine=refine, schedule=schedule, max_steps=20)
    for lam in (0.1, 0.3):  # of AnoGAN the weight of the features, which no captured step may hold
        found = ours(frames(1)[0], lam=lam)
        same(found, host(frames(1)[0], lam=lam))


def test_rrgi_goes_on_from_what_the_device_found(
    make_bundle: MakeBundle, device: Device, frames: Frames
) -> None:
    host, ours = both(make_bundle(finetune=True), device, refine="rrgi")
    assert isinstance(ours._finetuner, DeviceFinetuner)
    found, expected = ours(frames(1)[0]), host(frames(1)[0])
    same(found, expected)
    assert found.steps > ours._settings.max_steps / 2
    assert ours._device._sizes  # type: ignore[union-attr]


@pytest.mark.parametrize("capturable", [True, False])
def test_an_inspector_decides_as_on_the_host(
    tiny_bundle: Bundle, kernels: Any, frames: Frames, capturable: bool
) -> None:
    backend = EmulatedBackend(capturable=capturable)
    with (
        Inspector.open(tiny_bundle, backend="onnxruntime", threads=1) as host,
        Inspector.open(tiny_bundle, backend=backend, kernels=kernels) as ours,
    ):
        pairs = zip(ours.inspect_many(frames(7)), host.inspect_many(frames(7)), strict=True)
        for index, (found, expected) in enumerate(pairs):
            assert found.verdict == expected.verdict == ("pass" if index % 2 else "fail")
            np.testing.assert_array_equal(found.mask, expected.mask)
            assert found.timings["device"] <= found.timings["search"]
        sizes = ours._search._device._sizes  # type: ignore[union-attr]
        assert {held.replay.captured for s in sizes.values() for held in s.held.values()} == {
            capturable
        }


def test_a_step_is_kept_for_the_next_frames(
    tiny_bundle: Bundle, kernels: Any, driver: Any, frames: Frames
) -> None:
    host, ours = both(tiny_bundle, (EmulatedBackend(), kernels))
    ours.many(frames(2))
    allocations, launched = driver.allocations, len(driver.launched)
    for lam in (0.01, 0.05):
        for found, expected in zip(
            ours.many(frames(4)[2:], lam=lam), host.many(frames(4)[2:], lam=lam), strict=True
        ):
            same(found, expected)
    assert driver.allocations == allocations
    assert len(driver.launched) == launched  # every step was a replay


def test_tiles_of_grey_frames_are_searched_together(
    make_bundle: MakeBundle, device: Device
) -> None:
    bundle = make_bundle(channels=1, preprocess={"geometry": "tiles", "overlap": 0.5})
    host, ours = both(bundle, device, max_steps=10)
    frame = np.random.default_rng(1).integers(60, 120, (40, 27), np.uint8)
    found, expected = ours(frame), host(frame)
    assert len(found.z) > 4
    np.testing.assert_allclose(found.restored, expected.restored, atol=1)  # a step of 8 bits
    assert found.objective == pytest.approx(expected.objective, rel=0.01)


def test_the_frame_before_is_the_only_start_where_it_is_near(
    tiny_bundle: Bundle, device: Device, frames: Frames
) -> None:
    host, ours = both(tiny_bundle, device)
    frame = frames(1)[0]
    first = host(frame)
    found, expected = ours(frame, previous=first), host(frame, previous=first)
    same(found, expected)
    assert found.steps < first.steps


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_known_masks_are_filled_as_on_the_host(
    make_bundle: MakeBundle, device: Device, frames: Frames, schedule: str
) -> None:
    bundle = make_bundle(rgi={"latent_weight": 0.01})
    host, ours = both(bundle, device, schedule=schedule, max_steps=25)
    hole = np.zeros((16, 16), np.bool_)
    hole[3:9, 5:11] = True
    frame = frames(1)[0]
    filled = ours.inpaint(frame, hole)
    np.testing.assert_allclose(filled, host.inpaint(frame, hole), atol=2e-3)
    np.testing.assert_array_equal(filled[~hole], frame[~hole])


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_codes_of_autoencoders_are_searched_as_on_the_host(
    make_energy_bundle: MakeBundle, kernels: Any, schedule: str
) -> None:
    bundle = make_energy_bundle(latent=True, energy={"score": "l2"})
    more: dict[str, Any] = {"refine": "latent", "schedule": schedule, "max_steps": 12}
    host = EnergySearch(bundle, SearchOptions(backend="onnxruntime", threads=1, **more))
    ours = EnergySearch(bundle, SearchOptions(backend=EmulatedBackend(), **more), kernels=kernels)
    frames = list(np.random.default_rng(3).random((3, 16, 16)).astype(np.float32))
    for lam in (0.5, 5.0):  # the weight of the prior, which is part of a captured step
        pairs = zip(ours.many(frames, lam=lam), host.many(frames, lam=lam), strict=True)
        for found, expected in pairs:
            assert (found.status, found.steps) == (expected.status, expected.steps)
            np.testing.assert_allclose(found.trace, expected.trace, rtol=1e-4)
            np.testing.assert_allclose(found.restored, expected.restored, atol=1e-3)
    assert ours._code.device._sizes  # type: ignore[union-attr]


class Race:
    """Three images with three starts each, some of which are nowhere finite."""

    def __init__(self, search: Search, frames: list[NDArray[Any]], steps: int = 100) -> None:
        rng = np.random.default_rng(8)
        self.search = search
        self.images = np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2))
        self.starts = rng.standard_normal((3, 3, 4)).astype(np.float32)
        self.starts[0, 1] = np.nan
        self.starts[1] = np.nan
        self.limits = limits_for("fast", steps, 1e-3, None, 3, 0.02)

    def run(self, *, device: bool) -> Solution:
        method, lam = self.search._method, np.array([0.02, 0.02, 0.05], np.float32)
        if device:
            assert self.search._device is not None
            return self.search._device.solve(method, self.images, self.starts, lam, self.limits)
        return method.solve(self.images, self.starts, lam, self.limits)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("steps", [3, 6, 7, 100])
def test_starts_race_as_on_the_host(
    tiny_bundle: Bundle, device: Device, frames: Frames, steps: int
) -> None:
    _, ours = both(tiny_bundle, device)
    race = Race(ours, frames(3), steps)
    found, expected = race.run(device=True), race.run(device=False)
    assert found.status == expected.status
    assert found.status[1] is Status.NON_FINITE
    np.testing.assert_allclose(found.steps, expected.steps, atol=2 if steps == 100 else 0)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-4)
    np.testing.assert_allclose(found.z, expected.z, atol=1e-3)
    for mine, theirs in zip(found.trace, expected.trace, strict=True):
        np.testing.assert_allclose(mine[:10], theirs[:10], rtol=1e-4)


class Clock:
    """A millisecond passes with every pass of an engine on the stream."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def __call__(self) -> float:
        return 1e-3 * self.driver.passes


@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize("deadline_ms", [1, 9, 25])
def test_the_deadline_is_kept(
    tiny_bundle: Bundle, frames: Frames, make_driver: Any, deadline_ms: float, schedule: str
) -> None:
    driver = make_driver()
    driver.passes = 0

    class Timed(EmulatedBackend):
        """Counts the passes that have run."""

        def on_device(self, kernels: CudaKernels) -> DeviceEngines:
            inner = super().on_device(kernels)
            return DeviceEngines(kernels, lambda path: _CountedGraph(driver, inner.graph(path)))

    options = SearchOptions(backend=Timed(), schedule=schedule, max_steps=40)
    kernels = CudaKernels(driver=driver)
    search = Search(tiny_bundle, options, kernels=kernels, clock=Clock(driver))
    search(frames(1)[0])
    began = driver.passes
    found = search(frames(1)[0], deadline_ms=deadline_ms)
    assert found.status is Status.DEADLINE
    assert driver.passes - began <= deadline_ms + 1  # a first iteration, two passes, may be over
    assert driver.passes - began >= deadline_ms - 3
    assert np.isfinite(found.objective)


class _CountedGraph:
    def __init__(self, driver: Any, inner: DeviceGraph) -> None:
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self._driver, self._inner = driver, inner

    def over(self, inputs: Mapping[str, DeviceArray]) -> StreamPass:
        return _CountedPass(self._driver, self._inner.over(inputs))


class _CountedPass:
    def __init__(self, driver: Any, inner: StreamPass) -> None:
        self.inputs, self.outputs, self.capturable = inner.inputs, inner.outputs, inner.capturable
        self._driver, self._inner = driver, inner

    def enqueue(self, stream: int) -> None:
        self._inner.enqueue(stream)
        self._driver.enqueue(self._count)

    def _count(self) -> None:
        self._driver.passes += 1


class Refusing(EmulatedBackend):
    """Engines that were made for a few items at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def on_device(self, kernels: CudaKernels) -> DeviceEngines:
        inner = super().on_device(kernels)
        return DeviceEngines(kernels, lambda path: _RefusingGraph(inner.graph(path), self.most))


class _RefusingGraph:
    def __init__(self, inner: DeviceGraph, most: int) -> None:
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self._inner, self._most = inner, most

    def over(self, inputs: Mapping[str, DeviceArray]) -> StreamPass:
        for array in inputs.values():
            if array.shape[0] > self._most:
                raise BackendError(f"made for {self._most}, not for {array.shape[0]}")
        return self._inner.over(inputs)


@pytest.mark.parametrize(("most", "sizes"), [(10, {8, 2, 4, 1}), (4, {4, 1}), (3, set())])
def test_batches_that_engines_were_not_made_for_are_halved_or_go_to_the_host(
    tiny_bundle: Bundle,
    kernels: Any,
    frames: Frames,
    caplog: pytest.LogCaptureFixture,
    most: int,
    sizes: set[int],
) -> None:
    host = Search(tiny_bundle, SearchOptions(backend="onnxruntime", threads=1))
    ours = Search(tiny_bundle, SearchOptions(backend=Refusing(most)), kernels=kernels)
    with caplog.at_level(logging.WARNING, "unblemish"):
        for _ in range(2):
            pairs = zip(ours.many(frames(3)), host.many(frames(3)), strict=True)
            for found, expected in pairs:
                same(found, expected)
    lines = [r.getMessage() for r in caplog.records if "on the host" in r.getMessage()]
    assert lines == ([] if sizes else ["latents are searched on the host: made for 3, not for 4"])
    assert set(ours._device._sizes) >= sizes  # type: ignore[union-attr]
    assert bool(ours._device._sizes) == bool(sizes)  # type: ignore[union-attr]


@pytest.mark.parametrize("tensorrt", ["11.4.0.5"], indirect=True)
def test_engines_of_tensorrt_are_captured_with_all_terms(
    tensorrt: Any, kernels: Any, make_bundle: MakeBundle, frames: Frames
) -> None:
    from unblemish.export.engines.bundle_engines import build_engines
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    tensorrt.on_execute = compute(tensorrt)
    bundle = build_engines(
        make_bundle(rgi=EXTRAS, extras=True), EngineOptions(16, 4),
        memory=tensorrt.memory_of(tensorrt), say=lambda _: None,
    )  # fmt: skip
    tensorrt.drive(tensorrt, kernels.device.driver)
    backend = TensorRtBackend(tensorrt.memory, fallback=OrtBackend)
    host, ours = both(bundle, (backend, kernels))
    for found, expected in zip(ours.many(frames(2)), host.many(frames(2)), strict=True):
        same(found, expected)
    sizes = ours._device._sizes  # type: ignore[union-attr]
    assert {n: [h.replay.captured for h in s.held.values()] for n, s in sizes.items()} == {
        8: [True],
        2: [True],
    }


def test_a_generator_that_gives_nan_never_passes_a_part(
    make_bundle: MakeBundle, kernels: Any, frames: Frames
) -> None:
    inspector = Inspector.open(make_bundle(), backend=EmulatedBackend(), kernels=kernels)
    search = inspector._search
    assert isinstance(search, Search)
    engine = search._engines.generator
    forward = engine.forward
    engine.forward = lambda *a: forward(*a) * np.float32(np.nan)  # type: ignore[method-assign]
    solve = search._device.solve  # type: ignore[union-attr]

    def poisoned(method: Any, images: Any, *rest: Any, **more: Any) -> Solution:
        return solve(method, images * np.float32(np.nan), *rest, **more)

    search._device.solve = poisoned  # type: ignore[union-attr, method-assign]
    inspection = inspector.inspect(frames(2)[1])
    assert inspection.status is Status.NON_FINITE
    assert inspection.verdict == "fail"
