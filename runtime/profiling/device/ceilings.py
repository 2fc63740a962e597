"""What a GPU can do at its best: copies, matrix products, launches, transfers, measured here."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import DTypeLike

from unblemish.errors import BackendError, UnblemishError
from unblemish.kernels.cuda.device import Device
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.profiling.device.timeline import Backlog, Piece, Timeline

_LOG = logging.getLogger("unblemish")
_BEYOND, _WITHIN = 8, 0.25  # of the cache: bytes of an array that leaves it, and of one that stays
_GRAPHS = {"float32": "matmul.onnx", "float16": "matmul_half.onnx"}
_ROUNDS, _REPEATS = 5, 20


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of a GPU; the best of several rounds.

    Args:
        copy: bytes read plus bytes written per second by copies that leave the cache, 10^9/s.
        cached: the same by copies that stay in it. cache: its size, bytes.
        gemm: by the dtype, matrix product by the engine, multiply and add counted separately,
            10^12/s; without those that it cannot do.
        upload, download: between pinned memory and the device, 10^9 B/s.
        mark: ms from one timed event to the next, with nothing in between.
        least: ms of a kernel that does nothing, behind others, without the mark.
        node: ms of the same as a part of a graph. launch: ms from one to the next where the host
            puts each of them there.
    """

    copy: float
    cached: float
    cache: int
    gemm: dict[str, float]
    upload: float
    download: float
    mark: float
    least: float
    node: float
    launch: float


@dataclass(frozen=True)
class Sizes:
    """Of what ceilings are measured by: sides of the matrices, bytes of transfers, and of a copy of
    the backlog."""

    side: int = 4096
    transferred: int = 32 << 20
    backlog: int = 64 << 20


def measure_ceilings(
    device: Device,
    engines: DeviceEngines,
    backlog: Backlog,
    sizes: Sizes,
) -> Ceilings:
    """Measure for a few seconds. Raises: BackendError where the device has no room for it."""
    cache = device.driver.cache
    return Ceilings(
        copy=_copies(device, _BEYOND * cache),
        cached=_copies(device, int(_WITHIN * cache)),
        cache=cache,
        gemm=_products(device, engines, sizes.side),
        upload=_transfers(device, sizes.transferred, up=True),
        download=_transfers(device, sizes.transferred, up=False),
        **_launches(device, backlog),
    )


def _copies(device: Device, nbytes: int) -> float:
    words = max(nbytes // 4, 1)
    source, target = device.zeros((words,)), device.empty((words,))
    return 2e-6 * target.nbytes / _in_graph(device, lambda: device.copy(target, source))


def _transfers(device: Device, nbytes: int, *, up: bool) -> float:
    host, there = device.pinned((nbytes,), np.uint8), device.zeros((nbytes,), np.uint8)

    def work() -> None:
        if up:
            device.driver.upload(there.pointer, host)
        else:
            device.driver.download(host, there.pointer)

    return 1e-6 * nbytes / _on_stream(device, work)


def _products(device: Device, engines: DeviceEngines, side: int) -> dict[str, float]:
    """By the engine, or by the one that it leaves to what it was not built for."""
    rates = {}
    for dtype, file in _GRAPHS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it was not built for this
                milliseconds = _product(device, engines, file, dtype, side)
        except UnblemishError as error:
            _LOG.info("no matrix product in %s by the engine: %s", dtype, error)
            continue
        rates[dtype] = 2e-9 * side**3 / milliseconds
    return rates


def _product(
    device: Device, engines: DeviceEngines, file: str, dtype: DTypeLike, side: int
) -> float:
    random = np.random.default_rng(0)  # of zeros a GPU makes short work, and draws less power
    a, b = (
        device.to_device(random.standard_normal((side, side), np.float32).astype(dtype))
        for _ in range(2)
    )
    device.driver.synchronise()  # or else they might be given back while they are on their way
    with resources.as_file(resources.files("unblemish.runtime.profiling") / file) as path:
        product = engines.single(str(path), {"a": a, "b": b})
        return _on_stream(device, lambda: product.enqueue(device.driver.stream), 3)


def _launches(device: Device, backlog: Backlog) -> dict[str, float]:
    """Of marks, and of a kernel that finds nothing to do."""
    x, kept = device.zeros((4,)), device.zeros((4,))
    chosen = device.zeros((1,), np.int32)

    def nothing() -> None:
        device.launch("keep_rows", (1, 1), x=x, chosen=chosen, kept=kept, batch=1, length=4)

    def marks(timeline: Timeline) -> None:
        for _ in range(_REPEATS):
            timeline.take(Piece("nothing", "kernel"), lambda: None)

    def launches(timeline: Timeline) -> None:
        for _ in range(_REPEATS):
            nothing()

    mark = float(np.median(backlog.timed(marks).milliseconds()))
    return {
        "mark": mark,
        "least": float(np.median(backlog.timed(launches).milliseconds())) - mark,
        "node": _in_graph(device, nothing),
        "launch": _on_stream(device, nothing),
    }


def _in_graph(device: Device, work: Callable[[], object]) -> float:
    """Milliseconds of a piece of work on the device, captured over and over."""
    driver = device.driver
    work()
    driver.synchronise()
    driver.begin_capture()
    try:
        for _ in range(_REPEATS):
            work()
        graph = driver.end_capture()
    except BackendError:
        driver.abandon_capture()
        raise
    return _on_stream(device, graph.launch, 2) / _REPEATS


def _on_stream(device: Device, work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Milliseconds from one piece of work to the next, as the host puts them on the stream."""
    driver, best = device.driver, math.inf
    for _ in range(_ROUNDS):
        work()
        before = driver.record(timing=True)
        for _ in range(repeats):
            work()
        after = driver.record(timing=True)
        driver.synchronise()
        best = min(best, after.since(before) / repeats)
    return best
