"""TensorRT engines of a bundle: found, vouched for, loaded and run; else another backend runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from unblemish.bundle import Bundle
from unblemish.bundle.engines import Device, bundle_of, find_engine, read_engine, this_system
from unblemish.bundle.manifest import GraphRole
from unblemish.errors import BackendError, BundleError
from unblemish.runtime.backends.device_memory import DeviceMemory
from unblemish.runtime.backends.pairing import Wiring, check_feed, wire
from unblemish.runtime.backends.protocol import Array, Backend, Pair, Program
from unblemish.runtime.backends.tensorrt_engine import Engine, Staging
from unblemish.runtime.backends.tensorrt_log import version

Open = Callable[[], Backend]
Rebuild = Callable[[Bundle], Bundle]


def _onnxruntime() -> Backend:
    from unblemish.runtime.backends.onnxruntime import OrtBackend

    return OrtBackend()


def open_memory() -> DeviceMemory:
    """The first GPU, by pycuda. Raises: BackendError or MissingDependencyError without."""
    from unblemish.runtime.backends.pycuda_memory import PycudaMemory

    return PycudaMemory()


class TensorRtBackend:
    """Run graphs of a bundle by the engines that were built for this device.

    Where a graph has none, or none that fits this TensorRT, chip and system, it is built (where
    `rebuild` is given) or runs by `fallback`; a warning says which, and why, in one line. What an
    engine was not built for (a larger batch, another image size) runs by `fallback` too.

    Args:
        memory: the device; by default the first GPU, by pycuda.
        fallback: opens the backend for the rest; by default ONNX Runtime.
        rebuild: adds engines for this device to a bundle and returns it.
    Raises: BackendError where there is no GPU; MissingDependencyError without pycuda.
    """

    name = "tensorrt"

    def __init__(
        self,
        memory: DeviceMemory | None = None,
        *,
        fallback: Open = _onnxruntime,
        rebuild: Rebuild | None = None,
    ) -> None:
        self._memory = memory or open_memory()
        self._fallback, self._rebuild = fallback, rebuild
        self.device = Device(version(), self._memory.capability, this_system())

    def program(self, path: str, *, threads: int | None = None) -> Program:
        """Load one graph. Raises: BundleError where an engine is damaged; see `fallback`'s."""

        def other() -> Program:
            return self._fallback().program(path, threads=threads)

        engines = self._engines([path])
        return other() if engines is None else TensorRtProgram(engines[0], self._memory, other)

    def pair(self, forward: str, backward: str, *, threads: int | None = None) -> Pair:
        """Load a pair; both its engines or none. Raises: as `program`."""

        def other() -> Pair:
            return self._fallback().pair(forward, backward, threads=threads)

        engines = self._engines([forward, backward])
        if engines is None:
            return other()
        return TensorRtPair(engines[0], engines[1], self._memory, other)

    def _engines(self, paths: list[str]) -> list[Engine] | None:
        """Engines of these graphs, None where one is missing; nothing is deserialised before."""
        try:
            bundle, roles = _located(paths)
        except BundleError as error:
            _say(f"{str(error).rstrip('.')}, so that it runs by another backend")
            return None
        missing = self._missing(bundle, roles)
        if missing and self._rebuild is not None:
            _say(f"{missing}; they are built now, which takes minutes")
            bundle = self._rebuild(bundle)
            missing = self._missing(bundle, roles)
        if missing:
            _say(
                f"{missing}, so that it runs by another backend. "
                f"Build them here: unblemish build-engines {bundle.path}"
            )
            return None
        return [self._load(bundle, role) for role in roles]

    def _missing(self, bundle: Bundle, roles: list[GraphRole]) -> str:
        manifest = bundle.manifest
        absent = [role for role in roles if find_engine(manifest, role, self.device) is None]
        if not absent:
            return ""
        made = {
            str(Device(r.tensorrt, r.capability, r.system))
            for r in manifest.engines
            if r.role in absent
        }
        have = f"; there are some of {' and '.join(sorted(made))}" if made else ""
        return (
            f"bundle {bundle.path} has no engine of {' and '.join(absent)} as it is now for "
            f"{self.device}{have}"
        )

    def _load(self, bundle: Bundle, role: GraphRole) -> Engine:
        record = find_engine(bundle.manifest, role, self.device)
        assert record is not None
        return Engine(
            read_engine(bundle, record), role, self._memory, foreign=record.version_compatible
        )


def _located(paths: list[str]) -> tuple[Bundle, list[GraphRole]]:
    found = [bundle_of(Path(path)) for path in paths]
    if len({bundle.path for bundle, _ in found}) > 1:
        raise BundleError(f"{' and '.join(paths)} are of different bundles.")
    return found[0][0], [role for _, role in found]


def _say(text: str) -> None:
    warnings.warn(f"{text}.", RuntimeWarning, stacklevel=5)


class _Told:
    """Whether the user was told that another backend runs what an engine was not built for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said = False

    def say(self, reason: str) -> None:
        """Warn once that the engine is not used for what it was not built for."""
        if not self._said:
            _say(
                f"engine '{self._name}' was not built for this: {reason}; it runs by another "
                "backend. See --batch and --size of unblemish build-engines"
            )
        self._said = True


def _shapes(feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


class TensorRtProgram:
    """One engine."""

    def __init__(self, engine: Engine, memory: DeviceMemory, other: Callable[[], Program]) -> None:
        self._engine, self._memory, self._open = engine, memory, other
        self._staging = Staging(memory)
        self._told = _Told(engine.name)
        self._other: Program | None = None
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Program.run`."""
        reason = self._engine.misfit(_shapes(feeds))
        if reason is not None:
            self._told.say(reason)
            self._other = self._other or self._open()
            return self._other.run(feeds)
        self._engine.set_shapes(_shapes(feeds))
        for spec in self.inputs:
            check_feed(spec, feeds[spec.name])
            self._staging.upload(self._engine, spec, feeds[spec.name])
        self._engine.run()
        results = {s.name: self._staging.download(self._engine, s) for s in self.outputs}
        self._memory.synchronise()
        return results


class TensorRtPair:
    """A forward engine and its way back; what is kept in between stays on the device."""

    def __init__(
        self, forward: Engine, backward: Engine, memory: DeviceMemory, other: Callable[[], Pair]
    ) -> None:
        self._forward, self._backward, self._memory = forward, backward, memory
        self._wiring: Wiring = wire(forward, backward)
        _check_kept(forward, backward, self._wiring)
        self._staging = Staging(memory)
        self._open = other
        self._told = _Told(forward.name)
        self._other: Pair | None = None
        self._last: dict[str, Array] | None = None
        self._elsewhere = False
        self.inputs, self.outputs = forward.inputs, self._wiring.outputs

    def forward(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair.forward`."""
        self._last = None
        reason = self._forward.misfit(_shapes(feeds))
        self._elsewhere = reason is not None
        if reason is not None:
            self._told.say(reason)
            self._other = self._other or self._open()
            return self._other.forward(feeds)
        self._forward.set_shapes(_shapes(feeds))
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
        if self._elsewhere and self._other is not None:
            return self._other.backward(cotangents)
        if self._last is None:
            raise BackendError("backward was called before forward. Call forward first.")
        kept = {name: self._forward.shape(name) for name in self._wiring.kept}
        given = self._wiring.cotangent_feeds(self._last, cotangents)
        self._backward.set_shapes({**kept, **_shapes(given)})
        for name in self._wiring.kept:
            self._backward.share(name, self._forward.block(name))
        for spec in self._backward.inputs:
            if spec.name in given:
                check_feed(spec, given[spec.name])
                self._staging.upload(self._backward, spec, given[spec.name])
        self._backward.run()
        results = {
            self._wiring.gradients[spec.name]: self._staging.download(self._backward, spec)
            for spec in self._backward.outputs
        }
        self._memory.synchronise()
        return results


def _check_kept(forward: Engine, backward: Engine, wiring: Wiring) -> None:
    made = {spec.name: spec.dtype for spec in (*forward.inputs, *forward.outputs)}
    for spec in backward.inputs:
        if spec.name in wiring.kept and made[spec.name] != spec.dtype:
            raise BackendError(
                f"engines '{forward.name}' and '{backward.name}' do not belong together: "
                f"'{spec.name}' is {made[spec.name]} and {spec.dtype}. Build both again."
            )
