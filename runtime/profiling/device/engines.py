"""A backend whose passes on the device a profile can tell from what is around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.device import Watch
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.backends.protocol import Backend, Pair, Program
from unblemish.runtime.device.engines import DeviceBackend, DeviceEngines, DeviceGraph
from unblemish.runtime.device.engines.passes import PassPair, StreamPass
from unblemish.runtime.profiling.device.timeline import Piece


class PieceWatch(Watch, Protocol):
    """A profile that wants to put what is one piece on the stream itself."""

    def take(self, piece: Piece, put: Callable[[], None]) -> None:
        """Put a piece on the stream."""


class WatchedPass:
    """A pass that is one piece. Implements `StreamPass`."""

    def __init__(self, inner: StreamPass, piece: Piece, watch: PieceWatch) -> None:
        self.inputs, self.outputs, self.capturable = inner.inputs, inner.outputs, inner.capturable
        self._inner, self._piece, self._watch = inner, piece, watch

    def enqueue(self, stream: int) -> None:
        """See `StreamPass`."""
        self._watch.take(self._piece, lambda: self._inner.enqueue(stream))


Describe = Callable[[str, StreamPass], Piece]


class WatchedEngines(DeviceEngines):
    """Engines whose passes are pieces.

    Args:
        describe: path of a graph and its pass -> the piece that it is.
    """

    def __init__(self, inner: DeviceEngines, watch: PieceWatch, describe: Describe) -> None:
        super().__init__(inner.kernels, inner.graph)
        self.inner, self._watch, self._describe = inner, watch, describe

    def graph(self, path: str) -> DeviceGraph:
        """See `DeviceEngines`."""
        return self.inner.graph(path)

    def single(self, path: str, inputs: Mapping[str, DeviceArray]) -> StreamPass:
        """See `DeviceEngines`."""
        return self._watched(path, self.inner.single(path, inputs))

    def pair(self, forward: str, backward: str, inputs: Mapping[str, DeviceArray]) -> PassPair:
        """See `DeviceEngines`."""
        pair = self.inner.pair(forward, backward, inputs)
        return replace(
            pair,
            forward=self._watched(forward, pair.forward),
            backward=self._watched(backward, pair.backward),
        )

    def _watched(self, path: str, inner: StreamPass) -> StreamPass:
        return WatchedPass(inner, self._describe(path, inner), self._watch)


class WatchedBackend:
    """A backend that shows a profile its engines for searches on the device. Implements `Backend`.

    Args:
        backend: one that has `on_device`.
    """

    def __init__(self, backend: Backend, watch: PieceWatch, describe: Describe) -> None:
        self.name = backend.name
        self.engines: WatchedEngines | None = None
        self._backend, self._watch, self._describe = backend, watch, describe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def program(self, path: str, *, threads: int | None = None) -> Program:
        """See `Backend`."""
        return self._backend.program(path, threads=threads)

    def pair(self, forward: str, backward: str, *, threads: int | None = None) -> Pair:
        """See `Backend`."""
        return self._backend.pair(forward, backward, threads=threads)

    def on_device(self, kernels: CudaKernels) -> DeviceEngines:
        """See `DeviceBackend`."""
        kernels.device.watch = self._watch
        engines = cast(DeviceBackend, self._backend).on_device(kernels)
        self.engines = WatchedEngines(engines, self._watch, self._describe)
        return self.engines
