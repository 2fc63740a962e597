"""Whole inspections, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from unblemish.runtime.inspector import Inspector
from unblemish.runtime.profiling.timing import Times

Read = Callable[[], NDArray[Any]]

STAGES = (
    "decode",
    "preprocess",
    "start",
    "forward",
    "backward",
    "kernels",
    "terms",
    "solver",
    "post",
    "image",
)
_SEARCH = ("start", "forward", "backward", "kernels", "terms")
_LEAST_IMAGES = 3


def profile_stages(
    inspector: Inspector, images: Sequence[Read], *, seconds: float
) -> dict[str, Times]:
    """Inspect the images over and over for about `seconds`, and return the time of each stage.

    'start' is the choice of start values, 'terms' the passes of discriminator and features,
    'solver' what the search takes beyond all these, 'post' restoring, deciding and measuring,
    'image' the sum. The first inspection is not counted. Without a calibration nothing is decided.
    'steps' is a number, not a time.

    Args:
        images: functions that read and return a frame; at least one.
    """
    _inspect(inspector, images[0])
    rows: list[dict[str, float]] = []
    until = perf_counter() + seconds
    while len(rows) < _LEAST_IMAGES or perf_counter() < until:
        rows.append(_inspect(inspector, images[len(rows) % len(images)]))
    return {name: Times.of([row[name] for row in rows]) for name in (*STAGES, "steps")}


def _inspect(inspector: Inspector, read: Read) -> dict[str, float]:
    decided = inspector.bundle.manifest.calibration is not None
    began = perf_counter()
    frame = read()
    decoded = perf_counter()
    result = inspector.inspect(frame) if decided else inspector.search(frame)
    done = perf_counter()
    timings = result.timings
    parts = {name: timings.get(name, 0.0) for name in _SEARCH}
    return {
        "decode": 1e3 * (decoded - began),
        "preprocess": timings["preprocess"],
        **parts,
        "solver": max(0.0, timings["search"] - sum(parts.values())),
        "post": timings["restore"] + timings.get("decide", 0.0),
        "image": 1e3 * (done - began),
        "steps": float(result.steps),
    }
