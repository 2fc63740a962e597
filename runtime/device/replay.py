"""One iteration, captured as a CUDA graph after it has run once, and replayed."""

from __future__ import annotations

from typing import Protocol

from unblemish.kernels.cuda.device import Device
from unblemish.kernels.cuda.driver import Graph
from unblemish.runtime.device.progress import Progress


class Step(Protocol):
    """One iteration over arrays of fixed address."""

    capturable: bool

    @property
    def progress(self) -> Progress:
        """What is kept about its items."""

    def enqueue(self) -> None:
        """Put one iteration on the stream; returns before it has run."""


class Replay:
    """Repeats a step.

    The first time it is put on the stream piece by piece, which allocates what it needs. Then it is
    captured, unless one of its engines cannot be: those go on as at first.
    """

    def __init__(self, device: Device, step: Step) -> None:
        self.step = step
        self._device = device
        self._warm = False
        self._graph: Graph | None = None

    @property
    def captured(self) -> bool:
        """Whether the step is replayed as a graph."""
        return self._graph is not None

    def repeat(self, count: int) -> None:
        """Put `count` iterations on the stream. Raises: BackendError where CUDA refuses."""
        if count > 0 and not self._warm:
            self.step.enqueue()
            self._warm = True
            count -= 1
        if count > 0 and self.step.capturable and self._graph is None:
            self._graph = self._capture()
        for _ in range(count):
            if self._graph is None:
                self.step.enqueue()
            else:
                self._graph.launch()

    def _capture(self) -> Graph:
        driver = self._device.driver
        driver.begin_capture()
        try:
            self.step.enqueue()
            return driver.end_capture()
        except BaseException:
            driver.abandon_capture()
            raise
