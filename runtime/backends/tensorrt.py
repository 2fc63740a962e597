"""TensorRT engines of a bundle: found, vouched for, loaded and run; else another backend runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from unblemish.bundle import Bundle
from unblemish.bundle.engines import (
    Device,
    Size,
    bundle_of,
    find_engines,
    read_engine,
    this_system,
    why_none,
)
from unblemish.bundle.manifest import EngineRecord, GraphRole
from unblemish.errors import BundleError
from unblemish.runtime.backends.device_memory import DeviceMemory
from unblemish.runtime.backends.protocol import Array, Backend, Pair, Program
from unblemish.runtime.backends.tensorrt_engine import Engine, Shape, SharedMemory
from unblemish.runtime.backends.tensorrt_log import version
from unblemish.runtime.backends.tensorrt_run import EnginePair, EngineProgram, shapes_of

if TYPE_CHECKING:
    from unblemish.kernels.cuda import CudaKernels
    from unblemish.runtime.device.engines import DeviceEngines

Open = Callable[[], Backend]
Rebuild = Callable[[Bundle], Bundle]
Runner = TypeVar("Runner", EngineProgram, EnginePair)


def _onnxruntime() -> Backend:
    from unblemish.runtime.backends.onnxruntime import OrtBackend

    return OrtBackend()


def open_memory() -> DeviceMemory:
    """The first GPU, by pycuda. Raises: BackendError or MissingDependencyError without."""
    from unblemish.runtime.backends.pycuda_memory import PycudaMemory

    return PycudaMemory()


class Variants:
    """Engines of the same graphs for one size of images or several; loaded when first used.

    Args:
        load: a record -> its engine.
        families: for every size, the records of all the graphs.
    """

    def __init__(
        self, load: Callable[[EngineRecord], Engine], families: Sequence[tuple[EngineRecord, ...]]
    ) -> None:
        self._load, self._families = load, families
        self.sizes: tuple[Size, ...] = tuple(f[0].size for f in families if f[0].size is not None)
        self._said = False

    def first(self) -> tuple[Engine, ...]:
        """Those of one of the sizes. Raises: BundleError, BackendError where they do not load."""
        return self._engines(self._families[0])

    def fitting(self, shapes: Mapping[str, Shape]) -> tuple[Engine, ...] | None:
        """Those that take inputs of these shapes; where none do, None and one warning.

        Raises: as `first`.
        """
        reasons = [f"there are engines for images of {_listed(self.sizes)}"] if self.sizes else []
        for family in self._families:
            if _shows(family[0].size, shapes):
                engines = self._engines(family)
                reason = engines[0].misfit(shapes)
                if reason is None:
                    return engines
                reasons = [reason]
        self._say(reasons[0])
        return None

    def _engines(self, family: tuple[EngineRecord, ...]) -> tuple[Engine, ...]:
        return tuple(self._load(record) for record in family)

    def _say(self, reason: str) -> None:
        if not self._said:
            _say(
                f"engine '{self._families[0][0].role}' was not built for this: {reason}; it runs "
                "by another backend. See --batch and --size of unblemish build-engines"
            )
        self._said = True


def _shows(size: Size | None, shapes: Mapping[str, Shape]) -> bool:
    """Whether an input is an image of this size."""
    return size is None or any(len(s) == 4 and s[2:] == size for s in shapes.values())


def _listed(sizes: Sequence[Size]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sizes)


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
        memory = memory or open_memory()
        self._shared = SharedMemory(memory)
        self._fallback, self._rebuild = fallback, rebuild
        self._loaded: dict[Path, Engine] = {}
        self.device = Device(version(), memory.capability, this_system())

    def program(self, path: str, *, threads: int | None = None) -> Program:
        """Load one graph. Raises: BundleError where an engine is damaged; see `fallback`'s."""

        def other() -> Program:
            return self._fallback().program(path, threads=threads)

        variants = self.variants([path])
        return other() if variants is None else TensorRtProgram(variants, self._shared, other)

    def pair(self, forward: str, backward: str, *, threads: int | None = None) -> Pair:
        """Load a pair; both its engines or none. Raises: as `program`."""

        def other() -> Pair:
            return self._fallback().pair(forward, backward, threads=threads)

        variants = self.variants([forward, backward])
        return other() if variants is None else TensorRtPair(variants, self._shared, other)

    def on_device(self, kernels: CudaKernels) -> DeviceEngines:
        """See `DeviceBackend`; graphs without an engine run as `fallback` runs them there."""
        from unblemish.runtime.device.engines.tensorrt_pass import TensorRtEngines

        return TensorRtEngines(kernels, self.variants, self._fallback)

    def variants(self, paths: Sequence[str]) -> Variants | None:
        """Engines of these graphs, or None and a warning where one of them has none.

        Raises: BundleError where an engine is damaged, before anything of it is deserialised.
        """
        try:
            bundle, roles = _located(paths)
        except BundleError as error:
            _say(f"{str(error).rstrip('.')}, so that it runs by another backend")
            return None
        families = find_engines(bundle.manifest, roles, self.device)
        if not families and self._rebuild is not None:
            _say(f"{self._missing(bundle, roles)}; they are built now, which takes minutes")
            bundle = self._rebuild(bundle)
            families = find_engines(bundle.manifest, roles, self.device)
        if not families:
            _say(
                f"{self._missing(bundle, roles)}, so that it runs by another backend. "
                f"Build them here: unblemish build-engines {bundle.path}"
            )
            return None
        return Variants(lambda record: self._load(bundle, record), families)

    def _missing(self, bundle: Bundle, roles: Sequence[GraphRole]) -> str:
        manifest = bundle.manifest
        absent = [role for role in roles if not find_engines(manifest, [role], self.device)]
        return (
            f"bundle {bundle.path} has no engine of {' and '.join(absent or roles)} as it is now "
            f"for {self.device}; {why_none(manifest, roles, self.device)}"
        )

    def _load(self, bundle: Bundle, record: EngineRecord) -> Engine:
        path = bundle.path / record.file
        if path not in self._loaded:
            plan = read_engine(bundle, record)
            self._loaded[path] = Engine(plan, record.role, foreign=record.version_compatible)
        return self._loaded[path]


def _located(paths: Sequence[str]) -> tuple[Bundle, list[GraphRole]]:
    found = [bundle_of(Path(path)) for path in paths]
    if len({bundle.path for bundle, _ in found}) > 1:
        raise BundleError(f"{' and '.join(paths)} are of different bundles.")
    return found[0][0], [role for _, role in found]


def _say(text: str) -> None:
    warnings.warn(f"{text}.", RuntimeWarning, stacklevel=5)


class _Runners(Generic[Runner]):
    """What runs the engines of each size, made when first used."""

    def __init__(self, variants: Variants, make: Callable[[tuple[Engine, ...]], Runner]) -> None:
        self._variants = variants
        self._make: Callable[[tuple[Engine, ...]], Runner] = make
        self._made: dict[tuple[int, ...], Runner] = {}

    def of(self, engines: tuple[Engine, ...]) -> Runner:
        """Of these engines."""
        key = tuple(map(id, engines))
        if key not in self._made:
            self._made[key] = self._make(engines)
        return self._made[key]

    def fitting(self, feeds: Mapping[str, Array]) -> Runner | None:
        """Of the engines that take these feeds."""
        engines = self._variants.fitting(shapes_of(feeds))
        return None if engines is None else self.of(engines)


class TensorRtProgram:
    """One graph, by the engine for its images' size; what none was built for runs elsewhere.

    Args:
        other: opens the backend for the rest.
    """

    def __init__(
        self, variants: Variants, shared: SharedMemory, other: Callable[[], Program]
    ) -> None:
        self._runners = _Runners(variants, lambda engines: EngineProgram(engines[0], shared))
        self._open = other
        self._other: Program | None = None
        first = self._runners.of(variants.first())
        self.inputs, self.outputs = first.inputs, first.outputs
        self.image_sizes = variants.sizes

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Program.run`."""
        runner = self._runners.fitting(feeds)
        if runner is None:
            self._other = self._other or self._open()
            return self._other.run(feeds)
        return runner.run(feeds)


class TensorRtPair:
    """A graph and its way back; see `TensorRtProgram`."""

    def __init__(self, variants: Variants, shared: SharedMemory, other: Callable[[], Pair]) -> None:
        self._runners = _Runners(
            variants, lambda engines: EnginePair(engines[0], engines[1], shared)
        )
        self._open = other
        self._other: Pair | None = None
        first = self._runners.of(variants.first())
        self._latest: Pair = first
        self.inputs, self.outputs = first.inputs, first.outputs
        self.image_sizes = variants.sizes

    def forward(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair.forward`."""
        runner = self._runners.fitting(feeds)
        if runner is None:
            self._latest = self._other = self._other or self._open()
        else:
            self._latest = runner
        return self._latest.forward(feeds)

    def backward(self, cotangents: Mapping[str, Array]) -> Mapping[str, Array]:
        """See `Pair.backward`. Raises: BackendError where no forward came before."""
        return self._latest.backward(cotangents)
