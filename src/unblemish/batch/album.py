"""The pictures of a report: of each category the frames with the highest scores."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.batch.run import Result
from unblemish.calibration.metrics.truth import NORMAL
from unblemish.images import Image
from unblemish.report.closeup import closeup_window, draw_closeup, mark_window
from unblemish.report.overlay import (
    Picture,
    draw_overlay,
    fit_height,
    heat_map,
    label_of,
    png_bytes,
    side_by_side,
    to_display,
)
from unblemish.report.page import Figure
from unblemish.runtime.inspection import Inspection

_MOST_PICTURES = 24
_HEIGHT = 300


@dataclass(frozen=True)
class Entry:
    """One row: photograph, nearest normal image, score, defects."""

    caption: str
    panels: tuple[tuple[str, Picture], ...]

    def row(self, *, titles: bool = True) -> Picture:
        """The panels side by side."""
        shown = [(title if titles else "", picture) for title, picture in self.panels]
        return side_by_side(shown, height=_HEIGHT)


@dataclass
class Album:
    """Keeps a bounded number of pictures while frames pass by.

    Args:
        categories: how many categories there will be; each gets an equal share, three at least.
        threshold: of the pixels; the score maps are bright at twice this.
    """

    categories: int
    threshold: float | None = None
    _kept: dict[str, list[tuple[float, int, Entry]]] = field(default_factory=dict)
    _count: int = 0

    def add(self, result: Result) -> None:
        """Keep the picture of `result` where its score is among the highest of its category."""
        if result.inspection is None or result.image is None:
            return
        share = max(3, _MOST_PICTURES // max(self.categories, 1))
        kept = self._kept.setdefault(result.source.category, [])
        score = result.inspection.image_score
        self._count += 1
        if len(kept) >= share and score <= kept[0][0]:
            return
        entry = _entry(result, result.image, result.inspection, self.threshold)
        place = heapq.heapreplace if len(kept) >= share else heapq.heappush
        place(kept, (score, -self._count, entry))

    def entries(self) -> dict[str, tuple[Entry, ...]]:
        """Category -> rows in the order the frames came; the normal category last."""
        return {
            name: tuple(entry for _, _, entry in sorted(kept, key=lambda item: -item[1]))
            for name, kept in sorted(self._kept.items(), key=lambda i: (i[0] == NORMAL, i[0]))
        }

    def figures(self) -> dict[str, tuple[Figure, ...]]:
        """Category -> figures of a page."""
        return {
            name: tuple(Figure(png_bytes(entry.row()), entry.caption) for entry in entries)
            for name, entries in self.entries().items()
        }


def sheet(entries: Sequence[Entry]) -> Picture:
    """Rows under one line of titles."""
    rows = [entry.row(titles=not index) for index, entry in enumerate(entries)]
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)


def _entry(result: Result, image: Image, inspection: Inspection, threshold: float | None) -> Entry:
    window = closeup_window(image.shape, inspection.regions)
    passed = inspection.verdict == "pass"
    truth, about = result.truth, "" if result.truth is None else " (truth in blue)"
    if window is None:
        # Labels would be too small to read here; the caption states the largest measure.
        found = draw_overlay(image, inspection.mask, truth=truth, passed=passed)
        photograph, title = to_display(image), f"defects{about}"
    else:
        found = draw_closeup(
            image,
            inspection.mask,
            inspection.regions,
            window,
            truth=truth,
            passed=passed,
            least_side=_HEIGHT,
        )
        photograph, title = mark_window(image, window), f"defects, enlarged{about}"
    panels: tuple[tuple[str, NDArray[Any]], ...] = (
        ("photograph", photograph),
        ("nearest normal image", inspection.restored),
        ("score", heat_map(inspection.score, threshold)),
        (title, found),
    )
    fitted = tuple((name, fit_height(to_display(panel), _HEIGHT)) for name, panel in panels)
    caption = f"{result.source.name}: {result.record['verdict']}, {_found(result, inspection)}"
    return Entry(caption, fitted)


def _found(result: Result, inspection: Inspection) -> str:
    record = result.record
    found = f"{len(record['regions'])} region" + ("" if len(record["regions"]) == 1 else "s")
    if inspection.regions:
        found += f", the largest {label_of(inspection.regions[0])}"
    return (
        f"{found}, {record['defect_area']} px of defect, score {record['image_score']:.4g}, "
        f"{record['steps']} steps ({record['status']}), {record['latency_ms']:.0f} ms"
    )
