"""The profile of steps on the double, whose clock says what everything takes: sums are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend
from emulated_clock import EmulatedClock
from emulated_driver import EmulatedDriver

from unblemish.errors import BackendError
from unblemish.kernels.cuda import CudaKernels, Device
from unblemish.runtime.device import DeviceAlternation, Replay, Schedule, run
from unblemish.runtime.device.engines import DeviceEngines, DeviceGraph
from unblemish.runtime.device.progress import Ends
from unblemish.runtime.device.steps.alternation import AlternationSettings
from unblemish.runtime.profiling.device import timeline
from unblemish.runtime.profiling.device.ceilings import Ceilings, Sizes, measure_ceilings
from unblemish.runtime.profiling.device.engines import WatchedPass
from unblemish.runtime.profiling.device.report import DeviceStep, Stage, report, report_outside
from unblemish.runtime.profiling.device.timeline import Backlog, Piece
from unblemish.runtime.profiling.device.watch import DeviceWatch, StepSamples

SHAPE = (3, 1, 6, 10)
IMAGES = 4 * 3 * 60  # bytes
UNCAPTURED, CAPTURED = 9, 8  # iterations of a search that are timed
# Milliseconds of binary fractions: sums of them have no roundings.
COSTS = {
    "engine": 4.0, "residual_l2": 1.0, "finish_sum": 0.5, "energy_step": 2.0, "finish_norms": 0.25,
    "settle": 0.125, "keep_rows": 0.0625, "event": 0.03125,
}  # fmt: skip
COPY = 2.0**-12  # ms for a byte
STAGES = {
    "reconstruct": 4.0, "residual_l2": 1.0, "finish_sum": 1.0, "copy": IMAGES * COPY,
    "energy_step": 2.0, "finish_norms": 0.25, "bookkeeping": 0.1875,
}  # fmt: skip
PIECES = 9
CEILINGS = Ceilings(
    copy=1.0, cached=4.0, cache=1 << 16, gemm={"float32": 1e-6}, upload=1.0, download=1.0,
    mark=COSTS["event"], least=0.05, node=0.05, launch=0.05,
)  # fmt: skip


@pytest.fixture
def profiled(
    make_driver: Callable[..., EmulatedDriver], request: pytest.FixtureRequest
) -> Callable[..., StepSamples]:
    """profiled(put=, node=, capturable=, searches=) measures energy projection by a constant."""

    def measure(
        *, put: float, node: float = 0.0, capturable: bool = True, searches: int = 6
    ) -> StepSamples:
        clock = EmulatedClock(put, node=node, costs=COSTS, per_byte={"copy": COPY})
        driver = make_driver(clock=clock)
        kernels = CudaKernels(driver=driver)
        device, watch = kernels.device, DeviceWatch(clock)
        engine = _Engine(kernels, capturable)
        step = DeviceAlternation(
            kernels, WatchedPass(engine, Piece("reconstruct", "engine", 5000, 8000), watch),
            AlternationSettings(0.2, 0.7, -2.0, 2.0), Ends(40, least=-1.0),
        )  # fmt: skip
        device.watch, replay = watch, Replay(device, step)
        with watch.measuring(device, Backlog(device, clock, 1 << 16)):  # a copy of 16 ms
            for _ in range(searches):
                step.start(np.zeros(SHAPE, np.float32))
                run(device, replay, Schedule())
        (samples,) = watch.steps
        return samples

    return measure


def _exactly(value: float) -> Any:
    """But for how a number of iterations divides."""
    return pytest.approx(value, rel=1e-9)


class _Engine:
    """Makes nothing, in known time."""

    def __init__(self, kernels: CudaKernels, capturable: bool) -> None:
        self.inputs = {"image": kernels.device.zeros(SHAPE)}
        self.outputs = {"reconstruction": kernels.device.zeros(SHAPE)}
        self.capturable, self._driver = capturable, kernels.device.driver

    def enqueue(self, stream: int) -> None:
        self._driver.enqueue(lambda: None)  # type: ignore[attr-defined]


def test_stages_are_what_the_device_takes_for_them(profiled: Callable[..., StepSamples]) -> None:
    step = report(profiled(put=0.125, node=0.0625), CEILINGS, "float32")
    assert {stage.name: stage.milliseconds for stage in step.stages} == STAGES
    assert [stage.count for stage in step.stages] == [1, 1, 2, 1, 1, 1, 2]
    assert step.pieces == sum(STAGES.values())
    assert step.queued
    assert (step.step, step.batch) == ("DeviceAlternation", SHAPE[0])


def test_gaps_are_what_an_iteration_takes_beyond(profiled: Callable[..., StepSamples]) -> None:
    step = report(profiled(put=0.125, node=0.0625), CEILINGS, "float32")
    assert step.captured is not None
    # The device is always busy: nothing but the mark at the end of all iterations is added.
    assert step.uncaptured.gap == _exactly(COSTS["event"] / UNCAPTURED)
    assert step.captured.gap == _exactly(PIECES * 0.0625 + COSTS["event"] / CAPTURED)
    assert step.uncaptured.host.p50 == _exactly(PIECES * 0.125)
    assert step.captured.host.p50 == _exactly(0.125)
    assert step.saved == step.uncaptured.device.p50 - step.captured.device.p50
    assert [stage.share for stage in step.stages] == [
        ms / step.captured.device.p50 for ms in STAGES.values()
    ]


def test_a_host_that_is_slower_than_the_device_shows_in_the_gap_alone(
    profiled: Callable[..., StepSamples],
) -> None:
    step = report(profiled(put=2.0), CEILINGS, "float32")
    assert step.captured is not None
    assert {stage.name: stage.milliseconds for stage in step.stages} == STAGES
    assert step.queued
    # The host puts nine pieces there for each, and the mark at the end; the device waits for it.
    iteration = PIECES * 2.0 + 2.0 / UNCAPTURED
    assert step.uncaptured.device.p50 == _exactly(iteration)
    assert step.uncaptured.gap == _exactly(iteration - step.pieces)
    assert step.captured.gap == _exactly(COSTS["event"] / CAPTURED)
    assert step.saved == _exactly(iteration - step.pieces - COSTS["event"] / CAPTURED)


def test_times_that_hold_some_of_the_host_are_told(
    profiled: Callable[..., StepSamples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "_MOST_COPIES", 1)
    step = report(profiled(put=8.0), CEILINGS, "float32")
    assert not step.queued
    assert step.pieces > sum(STAGES.values())


def test_an_engine_that_cannot_be_captured_has_no_captured_iteration(
    profiled: Callable[..., StepSamples],
) -> None:
    samples = profiled(put=0.125, capturable=False)
    step = report(samples, CEILINGS, "float32")
    assert step.captured is None
    assert step.saved is None
    assert len(samples.uncaptured) == 4
    assert step.stages[0].share == 4.0 / step.uncaptured.device.p50


def test_bytes_are_those_of_the_arrays(profiled: Callable[..., StepSamples]) -> None:
    step = report(profiled(put=0.125), CEILINGS, "float32")
    moved = {stage.name: stage.nbytes for stage in step.stages}
    batch, sums = SHAPE[0], 8 * SHAPE[0]
    # made, x, what it is pulled by; the scale; a partial sum of one block for each image.
    assert moved["residual_l2"] == 3 * IMAGES + 4 * batch + sums
    # x is read and written; start, pulled, lam, rate; three partial sums.
    assert moved["energy_step"] == 4 * IMAGES + 2 * 4 * batch + 3 * sums
    assert moved["copy"] == 2 * IMAGES
    assert moved["reconstruct"] == 5000
    assert moved["bookkeeping"] is None


def test_rates_limits_and_advice_follow_from_the_ceilings(
    profiled: Callable[..., StepSamples],
) -> None:
    step = report(profiled(put=0.125), CEILINGS, "float32")
    stages: dict[str, Stage] = {stage.name: stage for stage in step.stages}
    engine, update = stages["reconstruct"], stages["energy_step"]
    assert engine.teraflops == pytest.approx(8000 / 4e-3 / 1e12)
    assert engine.of_gemm == pytest.approx(8000 / 4e-3 / 1e6)
    assert engine.gigabytes == pytest.approx(5000 / 4e-3 / 1e9)
    assert engine.of_copy == pytest.approx(5000 / 4e-3 / 4e9)  # it fits into the cache
    assert (engine.bound, engine.of_limit) == ("compute", pytest.approx(2.0))
    assert (update.bound, update.of_limit) == ("launch", pytest.approx(0.05 / 2))
    assert update.flops is None
    assert step.advice.startswith("reconstruct takes 46%, at 200% of its compute limit: less")


def test_a_device_that_waits_is_advised_more_images(profiled: Callable[..., StepSamples]) -> None:
    def advice(**settings: Any) -> str:
        found: DeviceStep = report(profiled(**settings), CEILINGS, "float32")
        return found.advice

    assert "can be captured (tensorrt)" in advice(put=2.0, capturable=False)
    assert advice(put=0.125, node=1.0).endswith("of an iteration: more images at once")


def test_a_search_that_is_not_measured_runs_as_ever(
    make_driver: Callable[..., EmulatedDriver],
) -> None:
    outcomes = []
    for watched in (False, True):
        kernels = CudaKernels(driver=make_driver())
        step = DeviceAlternation(
            kernels, _Engine(kernels, True), AlternationSettings(0.2, 0.7, -2.0, 2.0), Ends(4)
        )
        watch = DeviceWatch()
        kernels.device.watch = watch if watched else None
        step.start(np.ones(SHAPE, np.float32))
        outcomes.append(step.outcome(run(kernels.device, Replay(kernels.device, step), Schedule())))
        assert len(watch.steps) == watched
    np.testing.assert_array_equal(outcomes[0].trace, outcomes[1].trace)
    assert outcomes[0].status == outcomes[1].status


def test_what_is_put_there_outside_of_searches_is_counted_for_a_frame(
    make_driver: Callable[..., EmulatedDriver],
) -> None:
    clock = EmulatedClock(2.0, costs=COSTS | {"norms": 0.75}, per_byte={"copy": COPY})
    kernels = CudaKernels(driver=make_driver(clock=clock))
    device, watch = kernels.device, DeviceWatch(clock)
    device.watch = watch
    engine = WatchedPass(_Engine(kernels, True), Piece("features", "engine", 5000, 8000), watch)
    x, sums = device.zeros((2, 30)), [device.zeros((2,), np.float64) for _ in range(2)]
    with watch.measuring(device, Backlog(device, clock, 1 << 16)) as outside:
        for _ in range(3):
            engine.enqueue(kernels.stream)
        kernels.norms(x, squared=sums[0], largest=sums[1])
    engine.enqueue(kernels.stream)  # is not counted any more
    assert device.driver.name == "emulated"
    found = report_outside(outside, 2, 100.0, CEILINGS, "float32")
    features, norms, _ = found
    assert [stage.name for stage in found] == ["features", "norms", "finish_norms"]
    assert (features.count, features.milliseconds, features.share) == (1.5, 6.0, 0.06)
    assert (features.nbytes, features.flops) == (7500, 12000)
    assert features.of_gemm == pytest.approx(8000 / 4e-3 / 1e6)
    assert (norms.count, norms.milliseconds) == (0.5, 0.375)
    assert norms.nbytes == round((4 * 60 + 2 * 8 * 2) / 2)


def test_ceilings_are_those_of_the_clock(make_driver: Callable[..., EmulatedDriver]) -> None:
    clock = EmulatedClock(
        0.25,
        node=0.0,
        costs={"keep_rows": 0.125, "event": 0.0625, "matmul": 2.0, "matmul_half": 0.5},
        per_byte={"copy": COPY, "upload": 2 * COPY, "download": COPY / 2},
    )
    kernels = CudaKernels(driver=make_driver(clock=clock))
    backlog, sizes = Backlog(kernels.device, clock, 1 << 16), Sizes(16, 1 << 16, 1 << 16)
    engines = EmulatedBackend().on_device(kernels)
    found = measure_ceilings(kernels.device, engines, backlog, sizes)
    assert found.mark == 0.0625
    assert found.least == 0.125
    assert found.cache == 1 << 16
    # A mark, and the time to put it there, are added to all that lies between two of them.
    assert found.node == pytest.approx(0.125, rel=0.02)
    assert found.launch == pytest.approx(0.25, rel=0.06)
    assert found.copy == pytest.approx(2e-6 / COPY, rel=1e-3)
    assert found.upload == pytest.approx(1e-6 / (2 * COPY), rel=1e-3)
    assert found.download == pytest.approx(2e-6 / COPY, rel=1e-3)
    flops, mark = 2e-9 * 16**3, 0.0625 / 3  # behind three products
    assert found.gemm["float32"] == _exactly(flops / (2.0 + mark))
    assert found.gemm["float16"] == _exactly(flops / (0.5 + mark))


def test_a_step_and_the_ceilings_are_measured_where_the_kernels_run(
    any_kernels: CudaKernels,
) -> None:
    device, watch, copied = any_kernels.device, DeviceWatch(), 1 << 26
    if isinstance(device.driver, EmulatedDriver):
        device.driver.clock.piece, copied = 0.5, 1 << 16
    step = DeviceAlternation(
        any_kernels, WatchedPass(_Copying(device), Piece("copies", "engine", 2 * IMAGES), watch),
        AlternationSettings(0.2, 0.7, -2.0, 2.0), Ends(40, least=-1.0),
    )  # fmt: skip
    device.watch, backlog = watch, Backlog(device, nbytes=copied)
    replay = Replay(device, step)
    with watch.measuring(device, backlog):
        for _ in range(6):
            step.start(np.zeros(SHAPE, np.float32))
            run(device, replay, Schedule())
    device.watch = None
    engines = DeviceEngines(any_kernels, _refuse)
    ceilings = measure_ceilings(device, engines, backlog, Sizes(16, 1 << 20))
    assert ceilings.gemm == {}
    assert min(ceilings.copy, ceilings.cached, ceilings.upload, ceilings.download) > 0
    found = report(watch.steps[0], ceilings, "float32")
    assert found.captured is not None
    assert found.captured.device.p50 > 0
    assert found.uncaptured.device.p50 > 0
    assert [stage.name for stage in found.stages] == ["copies", *list(STAGES)[1:]]
    assert 0 < found.pieces < 2 * found.uncaptured.device.p50


class _Copying:
    """An engine that any driver can run and capture."""

    capturable = True

    def __init__(self, device: Device) -> None:
        self.inputs, self.outputs = (
            {name: device.zeros(SHAPE)} for name in ("image", "reconstruction")
        )
        self._device = device

    def enqueue(self, stream: int) -> None:
        self._device.copy(self.outputs["reconstruction"], self.inputs["image"])


def _refuse(path: str) -> DeviceGraph:
    raise BackendError("there is no engine here.")


def test_events_tell_the_time(any_kernels: CudaKernels) -> None:
    device = any_kernels.device
    if isinstance(device.driver, EmulatedDriver):
        device.driver.clock.per_byte = {"copy": COPY}
    source, target = device.zeros((1 << 20,)), device.empty((1 << 20,))
    marks = []
    for copies in (0, 1, 9):
        for _ in range(copies):
            device.copy(target, source)
        marks.append(device.driver.record(timing=True))
    device.driver.synchronise()
    one, nine = marks[1].since(marks[0]), marks[2].since(marks[1])
    assert 0 < one < nine
