"""The profile of a bundle whose searches run on the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import GraphRole, Manifest
from unblemish.kernels import Kernels
from unblemish.runtime.backends.protocol import Backend
from unblemish.runtime.device.engines.passes import StreamPass
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.profiling.device.ceilings import Ceilings, Sizes, measure_ceilings
from unblemish.runtime.profiling.device.engines import WatchedBackend, WatchedEngines
from unblemish.runtime.profiling.device.report import DeviceStep, Stage, report, report_outside
from unblemish.runtime.profiling.device.timeline import Backlog, Piece
from unblemish.runtime.profiling.device.watch import DeviceWatch
from unblemish.runtime.solvers.loop import Clock

_LEAST_ROUNDS = 6  # two of each way to run a search
_SHOWN = ("image", "latent", "gradient")  # tensors of images, or one for each


@dataclass(frozen=True)
class DeviceProfile:
    """Searches on the device.

    Args:
        frames_per_second: inspected, as many at once as are worth it, reading the files left out.
        product: dtype of the matrix product that engines are compared with.
        steps: the ones that took part, the first met first.
        outside: passes and kernels that are not part of a search, for a frame.
    """

    frames_per_second: float
    ceilings: Ceilings
    product: str
    steps: tuple[DeviceStep, ...]
    outside: tuple[Stage, ...]


def profile_device(
    bundle: Bundle,
    backend: Backend,
    frames: Sequence[NDArray[Any]],
    *,
    seconds: float = 5.0,
    threads: int | None = None,
    kernels: Kernels | None = None,
    clock: Clock = time.perf_counter,
    sizes: Sizes | None = None,
) -> DeviceProfile | None:
    """Inspect frames for about twice `seconds`: as ever, then as `DeviceWatch` does; and measure
    the ceilings. None where nothing runs on the device.

    Raises: BundleError, BackendError or ConfigError, as `Inspector.open`.
    """
    if not hasattr(backend, "on_device"):
        return None
    watch = DeviceWatch(clock)
    watched = WatchedBackend(backend, watch, lambda path, inner: describe(bundle, path, inner))
    with Inspector.open(bundle, backend=watched, threads=threads, kernels=kernels) as inspector:
        if watched.engines is None:
            return None
        try:
            return _measured(inspector, watch, watched.engines, frames, seconds, sizes or Sizes())
        finally:
            watched.engines.kernels.device.watch = None


def _measured(
    inspector: Inspector,
    watch: DeviceWatch,
    engines: WatchedEngines,
    frames: Sequence[NDArray[Any]],
    seconds: float,
    sizes: Sizes,
) -> DeviceProfile | None:
    _inspect(inspector, frames)
    if not watch.used:
        return None
    device, clock = engines.kernels.device, watch.clock
    rounds, spent = _repeat(inspector, frames, seconds, clock, 1)
    frame = spent / (rounds * len(frames))
    backlog = Backlog(device, clock, sizes.backlog)
    with watch.measuring(device, backlog) as outside:
        rounds, _ = _repeat(inspector, frames, seconds, clock, _LEAST_ROUNDS)
    ceilings = measure_ceilings(device, engines.inner, backlog, sizes)
    product = "float32" if inspector.bundle.manifest.precision == "fp32" else "float16"
    steps = [report(step, ceilings, product) for step in watch.steps if step.complete]
    others = report_outside(outside, rounds * len(frames), 1e3 * frame, ceilings, product)
    return DeviceProfile(1 / frame, ceilings, product, tuple(steps), others)


def _inspect(inspector: Inspector, frames: Sequence[NDArray[Any]]) -> None:
    if inspector.bundle.manifest.calibration is None:
        for frame in frames:
            inspector.search(frame)
    else:
        list(inspector.inspect_many(frames))


def _repeat(
    inspector: Inspector, frames: Sequence[NDArray[Any]], seconds: float, clock: Clock, least: int
) -> tuple[int, float]:
    """Inspect over and over; how often, and how many seconds that took."""
    began, rounds = clock(), 0
    while rounds < least or clock() - began < seconds:
        _inspect(inspector, frames)
        rounds += 1
    return rounds, clock() - began


def describe(bundle: Bundle, path: str, inner: StreamPass) -> Piece:
    """A pass of a graph: weights read once, inputs read, outputs written, and its arithmetic."""
    roles = {str(bundle.graph(role)): role for role in bundle.manifest.graphs}
    tensors = (*inner.inputs.values(), *inner.outputs.values())
    # The file is its weights, but for a few kilobytes of structure.
    nbytes = Path(path).stat().st_size + sum(array.nbytes for array in tensors)
    role = roles.get(path)
    if role is None:
        return Piece(Path(path).stem, "engine", nbytes)
    flops = bundle.manifest.graphs[role].flops * _images(bundle.manifest, role, inner)
    return Piece(role, "engine", nbytes, round(flops) or None)


def _images(manifest: Manifest, role: GraphRole, inner: StreamPass) -> float:
    """How many of the model's images a pass takes; of crops, by their pixels or cells."""
    graph, arrays = manifest.graphs[role], {**inner.inputs, **inner.outputs}
    entry, p = graph.inputs[0].name, manifest.preprocess
    if manifest.detector is not None and role.startswith("flow"):
        stride = manifest.detector.maps[0].stride  # of the cells that the first tensor has
        return arrays[entry].shape[0] / (-(-p.height // stride) * -(-p.width // stride))
    shown = [t for t in (*graph.inputs, *graph.outputs) if t.role in _SHOWN]
    if not shown:
        return arrays[entry].shape[0]
    count = 1
    for given, model in zip(shown[0].shape, (1, p.channels, p.height, p.width), strict=False):
        count *= given if isinstance(given, int) else model
    return arrays[shown[0].name].size / count
