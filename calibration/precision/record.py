"""Write down what goes into the graphs of a bundle while normal images are inspected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unblemish.runtime.backends.protocol import Array, Backend, Pair, Program, TensorSpec

Feeds = dict[str, Array]


class Tape:
    """An even choice of at most `most` feeds of one graph, whatever their number."""

    def __init__(self, most: int) -> None:
        self.feeds: list[Feeds] = []
        self._most, self._stride, self._seen = most, 1, 0

    def add(self, feeds: Mapping[str, Array]) -> None:
        """Keep a copy of every stride-th; where they become too many, of every second of those."""
        if self._seen % self._stride == 0:
            if len(self.feeds) == self._most:
                self.feeds = self.feeds[::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self.feeds.append({name: np.array(array) for name, array in feeds.items()})
        self._seen += 1


class RecordingBackend:
    """An engine family whose programs and pairs write down the inputs of their forward graphs.

    `tapes` holds, by path of the graph, what was fed.
    """

    def __init__(self, inner: Backend, most: int = 64) -> None:
        self.name = inner.name
        self.tapes: dict[Path, Tape] = {}
        self._inner, self._most = inner, most

    def program(self, path: str, *, threads: int | None = None) -> Program:
        """See `Backend.program`."""
        return _Recorded(self._inner.program(path, threads=threads), self._tape(path))

    def pair(self, forward: str, backward: str, *, threads: int | None = None) -> Pair:
        """See `Backend.pair`."""
        pair = self._inner.pair(forward, backward, threads=threads)
        return _RecordedPair(pair, self._tape(forward))

    def _tape(self, path: str) -> Tape:
        return self.tapes.setdefault(Path(path), Tape(self._most))


class _Recorded:
    def __init__(self, inner: Program, tape: Tape) -> None:
        self.inputs: tuple[TensorSpec, ...] = inner.inputs
        self.outputs: tuple[TensorSpec, ...] = inner.outputs
        self._inner, self._tape = inner, tape

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        self._tape.add(feeds)
        return self._inner.run(feeds)


class _RecordedPair:
    def __init__(self, inner: Pair, tape: Tape) -> None:
        self.inputs: tuple[TensorSpec, ...] = inner.inputs
        self.outputs: tuple[TensorSpec, ...] = inner.outputs
        self._inner, self._tape = inner, tape

    def forward(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        self._tape.add(feeds)
        return self._inner.forward(feeds)

    def backward(self, cotangents: Mapping[str, Array]) -> Mapping[str, Array]:
        return self._inner.backward(cotangents)
