"""A graph, or a graph and its way back, by engines that were built for one size."""

from __future__ import annotations

from collections.abc import Mapping

from unblemish.errors import BackendError
from unblemish.runtime.backends.pairing import Wiring, check_feed, wire
from unblemish.runtime.backends.protocol import Array
from unblemish.runtime.backends.tensorrt_engine import (
    Engine,
    Execution,
    Shape,
    SharedMemory,
    Staging,
)


def shapes_of(feeds: Mapping[str, Array]) -> dict[str, Shape]:
    """Name -> shape."""
    return {name: array.shape for name, array in feeds.items()}


class EngineProgram:
    """One engine. Implements `Program` for the shapes that it was built for."""

    def __init__(self, engine: Engine, shared: SharedMemory) -> None:
        self._memory = shared.device
        self._execution = Execution(engine, shared)
        self._staging = Staging(shared.device)
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Program.run`."""
        self._execution.set_shapes(shapes_of(feeds))
        for spec in self.inputs:
            check_feed(spec, feeds[spec.name])
            self._staging.upload(self._execution, spec, feeds[spec.name])
        self._execution.run()
        results = {s.name: self._staging.download(self._execution, s) for s in self.outputs}
        self._memory.synchronise()
        return results


class EnginePair:
    """A forward engine and its way back; what is kept in between stays on the device."""

    def __init__(self, forward: Engine, backward: Engine, shared: SharedMemory) -> None:
        self._memory = shared.device
        self._wiring: Wiring = wire(forward, backward)
        check_kept(forward, backward, self._wiring)
        self._forward, self._backward = Execution(forward, shared), Execution(backward, shared)
        self._staging = Staging(shared.device)
        self._last: dict[str, Array] | None = None
        self.inputs, self.outputs = forward.inputs, self._wiring.outputs

    def forward(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair.forward`."""
        self._last = None
        self._forward.set_shapes(shapes_of(feeds))
        for spec in self.inputs:
            check_feed(spec, feeds[spec.name])
            self._staging.upload(self._forward, spec, feeds[spec.name])
        self._forward.run()
        results = {s.name: self._staging.download(self._forward, s) for s in self.outputs}
        self._memory.synchronise()
        self._last = {**feeds, **results}
        return results

    def backward(self, cotangents: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair.backward`. Raises: BackendError where no forward came before."""
        if self._last is None:
            raise BackendError("backward was called before forward. Call forward first.")
        kept = {name: self._forward.shape(name) for name in self._wiring.kept}
        given = self._wiring.cotangent_feeds(self._last, cotangents)
        self._backward.set_shapes({**kept, **shapes_of(given)})
        for name in self._wiring.kept:
            self._backward.share(name, self._forward.block(name))
        for spec in self._backward.engine.inputs:
            if spec.name in given:
                check_feed(spec, given[spec.name])
                self._staging.upload(self._backward, spec, given[spec.name])
        self._backward.run()
        results = {
            self._wiring.gradients[spec.name]: self._staging.download(self._backward, spec)
            for spec in self._backward.engine.outputs
        }
        self._memory.synchronise()
        return results


def check_kept(forward: Engine, backward: Engine, wiring: Wiring) -> None:
    """Raise BackendError where one engine writes what is kept in another type than it is read."""
    made = {spec.name: spec.dtype for spec in (*forward.inputs, *forward.outputs)}
    for spec in backward.inputs:
        if spec.name in wiring.kept and made[spec.name] != spec.dtype:
            raise BackendError(
                f"engines '{forward.name}' and '{backward.name}' do not belong together: "
                f"'{spec.name}' is {made[spec.name]} and {spec.dtype}. Build both again."
            )
