"""The loop over frames: read, inspect, judge. A bad frame becomes a record with its error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.batch.records import Record, error_record, record_of
from unblemish.batch.sources import Frame, Source, read_frames
from unblemish.calibration.metrics import find_truth, read_truth
from unblemish.errors import SourceError, UnblemishError
from unblemish.images import Image
from unblemish.runtime.inspection import Inspection

PERCENTILES = (50, 90, 99)


class Inspects(Protocol):
    """What the loop needs of an `Inspector`."""

    def inspect(self, frame: NDArray[Any], *, deadline_ms: float | None = None) -> Inspection:
        """Inspect one frame."""

    def close(self) -> None:
        """Let go of the engines."""


@dataclass(frozen=True)
class Result:
    """One frame after inspection. `image` and `inspection` are None where there is an error.

    `truth` is (H, W) bool where a truth folder was given, all False for normal images.
    """

    source: Source
    record: Record
    image: Image | None = None
    inspection: Inspection | None = None
    truth: NDArray[np.bool_] | None = None


def inspect_sources(
    inspector: Inspects,
    sources: Sequence[Source],
    *,
    deadline_ms: float | None = None,
    truth: Path | None = None,
) -> Iterator[Result]:
    """Inspect every frame of `sources` in order.

    Args:
        truth: folder of truth masks, `<category>/<name>_mask.png`; 'good' is normal.
    """
    for frame in read_frames(sources):
        yield _result(inspector, frame, deadline_ms, truth)


def check_truth(sources: Iterable[Source], truth: Path) -> None:
    """Raise SourceError, before any work, where a defective image has no truth mask."""
    if not truth.is_dir():
        raise SourceError(
            f"{truth} is not a folder; --truth wants one of <defect>/<name>_mask.png."
        )
    for source in sources:
        if source.path.exists():
            find_truth(truth, source.path)


def latency_percentiles(records: Iterable[Record]) -> dict[str, float | None]:
    """p50, p90 and p99 of the inspections' wall times in ms; None where nothing was inspected."""
    times = [record["latency_ms"] for record in records if "latency_ms" in record]
    if not times:
        return {f"p{p}": None for p in PERCENTILES}
    return {f"p{p}": float(np.percentile(times, p)) for p in PERCENTILES}


def _result(
    inspector: Inspects, frame: Frame, deadline_ms: float | None, truth: Path | None
) -> Result:
    try:
        return _inspect(inspector, frame, deadline_ms, truth)
    except (UnblemishError, MemoryError) as error:
        return Result(frame.source, error_record(frame.source, error))


def _inspect(
    inspector: Inspects, frame: Frame, deadline_ms: float | None, truth: Path | None
) -> Result:
    if frame.image is None:
        raise frame.error or SourceError(f"cannot read {frame.source.label}.")
    expected = None if truth is None else _truth_of(frame.source, truth, frame.image)
    started = perf_counter()
    inspection = inspector.inspect(frame.image, deadline_ms=deadline_ms)
    latency = 1e3 * (perf_counter() - started)
    record = record_of(frame.source, inspection, latency)
    record["timings"] = {"decode": frame.decode_ms, **record["timings"]}
    return Result(frame.source, record, frame.image, inspection, expected)


def _truth_of(source: Source, truth: Path, image: Image) -> NDArray[np.bool_]:
    mask = read_truth(truth, source.path)
    if mask is None:
        return np.zeros(image.shape[:2], np.bool_)
    if mask.shape != image.shape[:2]:
        raise SourceError(
            f"the truth mask of {source.label} is {mask.shape[1]} x {mask.shape[0]} pixels, "
            f"the image {image.shape[1]} x {image.shape[0]}. Both must have the same size."
        )
    return mask
