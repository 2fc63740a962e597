"""Whole inspections, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from unblemish.runtime.decision import decide
from unblemish.runtime.profiling.timing import Times
from unblemish.runtime.search import Search

Read = Callable[[], NDArray[Any]]

STAGES = (
    "decode",
    "preprocess",
    "start",
    "forward",
    "backward",
    "kernels",
    "solver",
    "post",
    "image",
)
_LEAST_IMAGES = 3


def profile_stages(search: Search, images: Sequence[Read], *, seconds: float) -> dict[str, Times]:
    """Inspect the images over and over for about `seconds`, and return the time of each stage.

    'start' is the choice of start values, 'solver' what the search takes beyond engine, kernels
    and start, 'post' restoring, deciding and measuring, 'image' the sum. The first inspection is
    not counted. Without a calibration nothing is decided. 'steps' holds the number of steps, no time.

    Args:
        images: functions that read and return a frame; at least one.
    """
    search(images[0]())
    rows: list[dict[str, float]] = []
    until = perf_counter() + seconds
    while len(rows) < _LEAST_IMAGES or perf_counter() < until:
        rows.append(_inspect(search, images[len(rows) % len(images)]))
    return {name: Times.of([row[name] for row in rows]) for name in (*STAGES, "steps")}


def _inspect(search: Search, read: Read) -> dict[str, float]:
    manifest = search.bundle.manifest
    began = perf_counter()
    frame = read()
    decoded = perf_counter()
    found = search(frame)
    searched = perf_counter()
    if manifest.calibration is not None:
        decide(found, manifest.calibration, millimetres_per_pixel=manifest.millimetres_per_pixel)
    done = perf_counter()
    return _row(
        found.timings, 1e3 * (decoded - began), 1e3 * (done - searched), 1e3 * (done - began)
    ) | {"steps": float(found.steps)}


def _row(timings: Any, decode: float, decided: float, image: float) -> dict[str, float]:
    engine = {name: timings.get(name, 0.0) for name in ("start", "forward", "backward", "kernels")}
    return {
        "decode": decode,
        "preprocess": timings["preprocess"],
        **engine,
        "solver": max(0.0, timings["search"] - sum(engine.values())),
        "post": timings["restore"] + decided,
        "image": image,
    }
