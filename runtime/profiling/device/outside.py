"""What the device does outside of searches: passes and kernels one by one, behind a backlog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unblemish.kernels.cuda.driver import Driver
from unblemish.kernels.cuda.signatures import Signature
from unblemish.runtime.profiling.device.timeline import Backlog, Piece


class Outside:
    """Times every piece by itself, and waits for it."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._busy = False
        self._runs: dict[str, int] = {}
        self._samples: dict[str, list[tuple[Piece, float]]] = {}

    def take(self, piece: Piece, put: Callable[[], None]) -> None:
        """Put a piece on the stream, and what lies inside of it."""
        if self._busy or self._backlog.device.driver.capturing:
            put()
            return
        self._busy = True
        try:
            timeline, holds = self._backlog.behind(lambda line: line.take(piece, put))
        finally:
            self._busy = False
        self._runs[piece.name] = self._runs.get(piece.name, 0) + 1
        if holds or not self._backlog.grow():
            (milliseconds,) = timeline.milliseconds()
            self._samples.setdefault(piece.name, []).append((piece, milliseconds))

    def totals(self) -> dict[str, tuple[int, Piece, float]]:
        """By name: how often it was put there, and the mean piece and its ms, with the mark."""
        return {
            name: (self._runs[name], _mean([piece for piece, _ in samples]),
                   float(np.mean([ms for _, ms in samples])))
            for name, samples in self._samples.items()
        }  # fmt: skip


class LaunchDriver:
    """A `Driver` whose launches are pieces.

    Args:
        take: puts a launch on the stream.
    """

    def __init__(
        self, driver: Driver, take: Callable[[Signature, Callable[[], None]], None]
    ) -> None:
        self._driver, self._take = driver, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def launch(self, kernel: Signature, grid: tuple[int, int], values: list[Any]) -> None:
        """See `Driver`."""
        self._take(kernel, lambda: self._driver.launch(kernel, grid, values))


def _mean(pieces: list[Piece]) -> Piece:
    """Of pieces of one name."""
    nbytes, flops = [p.nbytes for p in pieces], [p.flops for p in pieces]
    return Piece(pieces[0].name, pieces[0].kind, _rounded(nbytes), _rounded(flops))


def _rounded(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known)) if len(known) == len(values) else None
