"""Jobs of NumPy arrays on the CUDA kernels: every array has its double on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from kernel_jobs.job import Array, Job
from unblemish.errors import BackendError
from unblemish.kernels.api import Kernels
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray

REPEATS = 50


class Doubled:
    """`CudaKernels` that takes NumPy arrays for their doubles on the device."""

    def __init__(self, kernels: CudaKernels) -> None:
        self.kernels = kernels
        self._doubles: dict[int, tuple[Array, DeviceArray]] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.kernels, name)

        def call(*arguments: Any, **named: Any) -> Any:
            there = [self.double(value) for value in arguments]
            return method(*there, **{key: self.double(value) for key, value in named.items()})

        return call

    def double(self, value: Any) -> Any:
        """The device's double of an array; anything else as it is."""
        if not isinstance(value, np.ndarray):
            return value
        key = value.__array_interface__["data"][0]
        if key not in self._doubles or self._doubles[key][1].shape != value.shape:
            self._doubles[key] = value, self.kernels.device.to_device(value)
        return self._doubles[key][1]

    def fetch(self, array: Array) -> None:
        """Copy a double over its NumPy array."""
        array[...] = self.kernels.device.to_host(self.double(array))


def error(job: Job, doubled: Doubled) -> float:
    """As `Job.errors`, of the CUDA kernels."""
    on_host: dict[str, Any] = {}

    class Once:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                result = getattr(doubled, name)(*arguments, **named)
                for array in job.outputs:
                    doubled.fetch(array)
                return result

            return on_host.setdefault(name, call)

    return job.errors([cast("Kernels", Once())])[0]


def seconds(kernels: CudaKernels, work: Callable[[], object]) -> float:
    """Seconds of a piece of work on the device, replayed as a graph so that Python does not count.

    Raises: BackendError where it cannot be captured.
    """
    driver = kernels.device.driver
    work()
    driver.synchronise()
    driver.begin_capture()
    try:
        work()
        graph = driver.end_capture()
    except BackendError:
        driver.abandon_capture()
        raise
    best = float("inf")
    for _ in range(5):
        graph.launch()
        driver.synchronise()
        began = time.perf_counter()
        for _ in range(REPEATS):
            graph.launch()
        driver.synchronise()
        best = min(best, (time.perf_counter() - began) / REPEATS)
    return best


def copy_seconds(kernels: CudaKernels, nbytes: int) -> float:
    """Seconds of a copy on the device that reads and writes `nbytes` together."""
    device, half = kernels.device, max(nbytes // 8, 1)
    source, target = device.zeros((half,)), device.empty((half,))
    return seconds(kernels, lambda: device.copy(target, source))


def line(size: str, job: Job, kernels: CudaKernels) -> str:
    """A row of the table: microseconds, error, bytes, share of the copy bandwidth."""
    doubled = Doubled(kernels)
    try:
        taken = seconds(kernels, lambda: job.by_kernels(cast("Kernels", doubled)))
    except BackendError as refused:
        return f"| {size} | {job.name} | not captured: {refused} | | | | |"
    copied = copy_seconds(kernels, job.bytes)
    return (
        f"| {size} | {job.name} | {taken * 1e6:.1f} | {error(job, Doubled(kernels)):.1e} | "
        f"{job.bytes / 1e6:.2f} | {job.bytes / taken / 1e9:.0f} | {100 * copied / taken:.0f} % |"
    )


HEAD = (
    "| array | operation | us | error | MB | GB/s | of copy |\n|---|---|---:|---:|---:|---:|---:|"
)
