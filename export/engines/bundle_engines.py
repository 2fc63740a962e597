"""Engines of a bundle's graphs for the device they are built on, added to the bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from unblemish.bundle import Bundle, update_bundle
from unblemish.bundle.engines import (
    Device,
    Size,
    engine_file,
    find_engines,
    graph_digest,
    this_system,
    timings_file,
)
from unblemish.bundle.manifest import EngineRecord, GraphRole
from unblemish.errors import BackendError
from unblemish.export.engines.engine_parity import (
    accept,
    check_pair,
    check_program,
    limit_of,
)
from unblemish.export.engines.options import EngineOptions
from unblemish.export.engines.prepare import Family, Prepared, families, sizes_of
from unblemish.export.engines.tensorrt_builder import Builder
from unblemish.runtime.backends.device_memory import DeviceMemory
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.backends.tensorrt import open_memory
from unblemish.runtime.backends.tensorrt_engine import Engine, SharedMemory
from unblemish.runtime.backends.tensorrt_log import version
from unblemish.runtime.backends.tensorrt_run import EnginePair, EngineProgram

Say = Callable[[str], None]
Opened = TypeVar("Opened")


class ExactUnavailableError(BackendError):
    """ONNX Runtime on the CPU has no kernels for a graph, bfloat16 among them."""


def _opened(load: Callable[[], Opened]) -> Opened:
    try:
        return load()
    except BackendError as error:
        raise ExactUnavailableError(str(error)) from error


def build_engines(
    bundle: Bundle,
    options: EngineOptions | None = None,
    *,
    memory: DeviceMemory | None = None,
    say: Say = print,
) -> Bundle:
    """Build what this device lacks, hold it against ONNX Runtime, and add it to the bundle.

    The bundle changes once, at the end, or not at all. Engines of other devices stay.

    Args:
        memory: the device; by default the first GPU.
        say: takes a line for each engine.
    Returns: the bundle with the engines.
    Raises: UnsupportedOperatorError or ModelError where TensorRT refuses a graph, naming the node,
        or an engine strays; BackendError where there is no GPU or an engine cannot be built;
        BundleError where the bundle cannot be written.
    """
    return _Build(bundle, options or EngineOptions(), memory or open_memory(), say).run()


class _Build:
    """One build: the engines made so far and what is said of them."""

    def __init__(
        self, bundle: Bundle, options: EngineOptions, memory: DeviceMemory, say: Say
    ) -> None:
        self._bundle, self._options, self._memory, self._say = bundle, options, memory, say
        self._device = Device(version(), memory.capability, this_system())
        self._timings = timings_file(self._device)
        known = self._timings in bundle.manifest.files
        self._builder = Builder(options, bundle.file(self._timings).read_bytes() if known else b"")
        self._files: dict[str, bytes] = {}
        self._records: list[EngineRecord] = []

    def run(self) -> Bundle:
        self._bundle.verify()
        manifest = self._bundle.manifest
        for roles in families(manifest):
            there = {engines[0].size for engines in find_engines(manifest, roles, self._device)}
            for size in sizes_of(manifest, roles, self._options):
                if size in there and not self._options.again:
                    self._say(f"{' and '.join(roles)}{_of(size)}: there already")
                else:
                    self._add(Family(self._bundle, roles, self._options, size))
        return self._written() if self._records else self._bundle

    def _add(self, family: Family) -> None:
        graphs = family.prepare(self._device.version)
        plans = []
        for graph in graphs:
            content = graph.model.SerializeToString()
            plans.append(self._builder.build(content, graph.role, graph.ranges).engine)
        figure = self._check(graphs, plans)
        for graph, plan in zip(graphs, plans, strict=True):
            record = self._record(graph.role, family.size, figure)
            self._files[record.file] = plan
            self._records.append(record)
            off = "" if figure is None else f", off by {figure:.1e}"
            self._say(f"{record.file}: {len(plan) / 1e6:.1f} MB{off}")

    def _check(self, graphs: list[Prepared], plans: list[bytes]) -> float | None:
        """Difference of the engines to the bundle's own graphs in ONNX Runtime, if it runs them."""
        try:
            figure = self._difference(graphs, plans)
        except ExactUnavailableError as error:
            self._say(f"graph '{graphs[0].role}' is not compared: {error}")
            return None
        limit = self._options.tolerance or min(limit_of(graph.model) for graph in graphs)
        return accept(figure, limit, f"graph '{graphs[0].role}'")

    def _difference(self, graphs: list[Prepared], plans: list[bytes]) -> float:
        foreign = self._options.version_compatible
        engines = [
            Engine(plan, graph.role, foreign=foreign)
            for graph, plan in zip(graphs, plans, strict=True)
        ]
        paths = [str(self._bundle.graph(graph.role)) for graph in graphs]
        usual = {name: shapes[1] for name, shapes in graphs[0].ranges.items()}
        sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
                 for v in graphs[0].model.graph.input} | usual  # fmt: skip
        exact, shared = OrtBackend(), SharedMemory(self._memory)
        if len(engines) == 2:
            expected = _opened(lambda: exact.pair(*paths))
            return check_pair(EnginePair(engines[0], engines[1], shared), expected, sizes)
        plain = _opened(lambda: exact.program(paths[0]))
        return check_program(EngineProgram(engines[0], shared), plain, sizes)

    def _record(self, role: GraphRole, size: Size | None, figure: float | None) -> EngineRecord:
        digest, device, options = (
            graph_digest(self._bundle.manifest, role),
            self._device,
            self._options,
        )
        return EngineRecord(
            file=engine_file(role, digest, device, size), role=role, graph_sha256=digest, size=size,
            tensorrt=device.tensorrt, capability=device.capability, system=device.system,
            version_compatible=options.version_compatible, hardware=options.hardware,
            parity=figure,
        )  # fmt: skip

    def _written(self) -> Bundle:
        """The bundle with what was built, without what it replaces or what no graph needs now."""
        manifest = self._bundle.manifest
        new = {record.file for record in self._records}
        # Those of before engines had sizes have none stated.
        replaced = {engine_file(r.role, r.graph_sha256, self._device) for r in self._records}
        kept = [
            record for record in manifest.engines
            if record.file not in new | replaced and record.role in manifest.graphs
            and record.graph_sha256 == graph_digest(manifest, record.role)
        ]  # fmt: skip
        stale = {r.file for r in manifest.engines} - new - {r.file for r in kept}
        return update_bundle(
            self._bundle,
            files={**self._files, self._timings: self._builder.timings},
            drop=stale,
            engines=[record.model_dump() for record in (*kept, *self._records)],
        )


def _of(size: Size | None) -> str:
    return "" if size is None else f" for {size[0]}x{size[1]}"
