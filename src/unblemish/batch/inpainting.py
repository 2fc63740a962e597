"""A batch of images whose holes are filled: what `unblemish inpaint` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.batch.album import Entry, sheet
from unblemish.batch.masks import Mask, Masks
from unblemish.batch.records import Record, error_record, filled_record
from unblemish.batch.sources import Frame, Source, read_frames
from unblemish.batch.writer import ResultWriter
from unblemish.errors import ConfigError, SourceError, UnblemishError
from unblemish.images import Image, write_image
from unblemish.report.overlay import draw_overlay, fit_height, to_display
from unblemish.runtime.found import Found

GRID = "grid.png"
_MOST_ROWS = 24
_HEIGHT = 300  # px, as in a report

Listen = Callable[[Record], None]


class Fills(Protocol):
    """What the batch needs of an `Inspector`."""

    def inpaint(
        self, frame: NDArray[Any], mask: NDArray[Any], *, deadline_ms: float | None = None
    ) -> NDArray[Any]:
        """Fill a known mask."""

    def search(self, frame: NDArray[Any], *, deadline_ms: float | None = None) -> Found:
        """Find the mask and fill it."""

    def close(self) -> None:
        """Let go of the engines."""


@dataclass(frozen=True)
class InpaintOptions:
    """What a batch is filled with; the fields are those of `BatchOptions`.

    Args:
        masks: of what is to be filled; without any the search finds it.
    """

    bundle: Path
    out: Path
    masks: Masks = field(default_factory=Masks)
    deadline_ms: float | None = None
    inspector: Mapping[str, Any] = field(default_factory=dict)


def open_filler(bundle: Path, settings: Mapping[str, Any]) -> Fills:
    """Open the inspector of a bundle."""
    from unblemish.runtime.inspector import Inspector

    return Inspector.open(bundle, **settings)


def run_inpainting(
    options: InpaintOptions,
    sources: Sequence[Source],
    listen: Listen,
    *,
    opener: Callable[[Path, Mapping[str, Any]], Fills] = open_filler,
) -> tuple[Record, ...]:
    """Fill the holes of `sources`; write `restored/`, `results.jsonl` and a grid to look at.

    Args:
        listen: called with each record once its image is written.
    Returns: the records; errors of single frames are among them.
    Raises: ConfigError for a deadline that is not positive; BundleError, BackendError, SourceError
    where the bundle, the engine or the output folder does not work.
    """
    if options.deadline_ms is not None and not options.deadline_ms > 0:
        raise ConfigError(f"the deadline is {options.deadline_ms} ms; expected more than 0.")
    records: list[Record] = []
    rows: list[Entry] = []
    with (
        closing(opener(options.bundle, options.inspector)) as filler,
        ResultWriter(options.out) as writer,
    ):
        for frame in read_frames(sources):
            record, pictures = _tried(filler, options, frame)
            written = writer.save_restored(record, pictures[-1][1] if pictures else None)
            if pictures and len(rows) < _MOST_ROWS:
                rows.append(_row(record, pictures))
            records.append(written)
            listen(written)
    if rows:
        write_image(options.out / GRID, sheet(rows))
    return tuple(records)


Pictures = list[tuple[str, Image]]


def _tried(filler: Fills, options: InpaintOptions, frame: Frame) -> tuple[Record, Pictures]:
    """As `_fill`; what goes wrong is the record."""
    try:
        return _fill(filler, options, frame)
    except (UnblemishError, MemoryError) as error:
        return error_record(frame.source, error), []


def _fill(filler: Fills, options: InpaintOptions, frame: Frame) -> tuple[Record, Pictures]:
    """Record of a frame, and its pictures, the restored one last."""
    image = frame.image
    if image is None:
        raise frame.error or SourceError(f"cannot read {frame.source.label}.")
    mask = options.masks.of(frame.source, image) if options.masks.known else None
    started = perf_counter()
    if mask is None:
        found = filler.search(image, deadline_ms=options.deadline_ms)
        restored, status, steps = found.restored, found.status.value, found.steps
    else:
        restored, status, steps = _inside(filler, image, mask, options.deadline_ms), None, None
    latency = 1e3 * (perf_counter() - started)
    record = filled_record(frame.source, restored, mask, latency, status, steps)
    pictures = [("image", image), ("restored", restored)]
    if mask is not None:
        pictures.insert(1, ("to be filled", draw_overlay(image, mask, least_side=_HEIGHT)))
    return record, pictures


def _inside(filler: Fills, image: Image, mask: Mask, deadline_ms: float | None) -> NDArray[Any]:
    """An image without a hole needs no search."""
    if not mask.any():
        return np.array(image)
    return filler.inpaint(image, mask, deadline_ms=deadline_ms)


def _row(record: Record, pictures: Pictures) -> Entry:
    fitted = tuple((name, fit_height(to_display(p), _HEIGHT)) for name, p in pictures)
    return Entry(record["name"], fitted)
