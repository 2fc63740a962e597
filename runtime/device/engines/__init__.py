"""Engines whose passes run on the kernels' stream, over the kernels' memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from unblemish.errors import BackendError, MissingDependencyError
from unblemish.kernels import Kernels
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.backends.pairing import wire
from unblemish.runtime.backends.protocol import Backend, TensorSpec
from unblemish.runtime.device.engines.passes import PassPair, StreamPass

_LOG = logging.getLogger("unblemish")


class DeviceGraph(Protocol):
    """A loaded graph that can be bound to arrays on the device; each binding is a pass."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def over(self, inputs: Mapping[str, DeviceArray]) -> StreamPass:
        """Bind all inputs; outputs are allocated. It may wait, and may not be captured.

        Raises: ShapeError where an input is missing or of another dtype or shape than the graph
        states; BackendError where the engine was not made for these shapes.
        """


class DeviceEngines:
    """The graphs of a bundle on the device, each loaded once.

    Args:
        load: path of a graph -> the graph; BackendError where it cannot run there.
    """

    def __init__(self, kernels: CudaKernels, load: Callable[[str], DeviceGraph]) -> None:
        self.kernels = kernels
        self._load = load
        self._graphs: dict[str, DeviceGraph] = {}

    def graph(self, path: str) -> DeviceGraph:
        """Load a graph, or give the one loaded before. Raises: as `load`."""
        if path not in self._graphs:
            self._graphs[path] = self._load(path)
        return self._graphs[path]

    def fitting(
        self, paths: tuple[str, ...], inputs: Mapping[str, DeviceArray]
    ) -> Sequence[DeviceGraph]:
        """Graphs as loaded for these inputs of the first: an engine may have been made for a size.

        Raises: as `load`.
        """
        return [self.graph(path) for path in paths]

    def single(self, path: str, inputs: Mapping[str, DeviceArray]) -> StreamPass:
        """A pass of one graph. Raises: as `DeviceGraph.over`."""
        (graph,) = self.fitting((path,), inputs)
        return graph.over(inputs)

    def pair(self, forward: str, backward: str, inputs: Mapping[str, DeviceArray]) -> PassPair:
        """A pass and its way back; what is kept in between stays where it was written.

        Raises: BackendError where the graphs do not belong together; as `DeviceGraph.over`.
        """
        device = self.kernels.device
        there, back = self.fitting((forward, backward), inputs)
        wiring = wire(there, back)
        first = there.over(inputs)
        known = {**first.inputs, **first.outputs}
        cotangents = {name: device.zeros(known[name].shape) for name in wiring.cotangents}
        feeds = {name: known[name] for name in wiring.kept}
        second = back.over(feeds | {f"ct_{name}": array for name, array in cotangents.items()})
        gradients = {given: second.outputs[name] for name, given in wiring.gradients.items()}
        return PassPair(first, second, cotangents, gradients)


@runtime_checkable
class DeviceBackend(Protocol):
    """A backend whose engines can run on the stream of `CudaKernels`."""

    def on_device(self, kernels: CudaKernels) -> DeviceEngines:
        """Its engines over the memory of these kernels."""


def device_engines(backend: Backend, kernels: Kernels | None = None) -> DeviceEngines | None:
    """The engines for searches that stay on the GPU; None where the search runs on the host.

    Args:
        kernels: None takes `CudaKernels` where they run here; one line of the log says why not.
            Others than `CudaKernels` were asked for, and keep the search on the host.
    """
    if not isinstance(backend, DeviceBackend):
        return None
    if kernels is None:
        try:
            kernels = CudaKernels()
        except (BackendError, MissingDependencyError) as error:
            _LOG.warning("the search runs on the host, its engines on the GPU: %s", error)
            return None
    return backend.on_device(kernels) if isinstance(kernels, CudaKernels) else None
