"""The pictures of a report: of each category the frames with the highest scores."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import partial

from unblemish.batch.run import Result
from unblemish.calibration.metrics.truth import NORMAL
from unblemish.images import Image
from unblemish.report.overlay import draw_overlay, heat_map, label_of, png_bytes, side_by_side
from unblemish.report.page import Figure
from unblemish.runtime.inspection import Inspection

_MOST_PICTURES = 24
_HEIGHT = 256


@dataclass
class Album:
    """Keeps a bounded number of pictures while frames pass by.

    Args:
        categories: how many categories there will be; each gets an equal share, three at least.
        threshold: of the pixels; the score maps are bright at twice this.
    """

    categories: int
    threshold: float | None = None
    _kept: dict[str, list[tuple[float, int, Figure]]] = field(default_factory=dict)
    _count: int = 0

    def add(self, result: Result) -> None:
        """Keep the picture of `result` where its score is among the highest of its category."""
        if result.inspection is None or result.image is None:
            return
        make = partial(_figure, result, result.image, result.inspection, self.threshold)
        share = max(3, _MOST_PICTURES // max(self.categories, 1))
        kept = self._kept.setdefault(result.source.category, [])
        score = result.inspection.image_score
        self._count += 1
        if len(kept) < share:
            heapq.heappush(kept, (score, -self._count, make()))
        elif score > kept[0][0]:
            heapq.heapreplace(kept, (score, -self._count, make()))

    def figures(self) -> dict[str, tuple[Figure, ...]]:
        """Category -> pictures, in the order the frames came; the normal category last."""
        return {
            category: tuple(entry[2] for entry in sorted(kept, key=lambda e: -e[1]))
            for category, kept in sorted(
                self._kept.items(), key=lambda item: (item[0] == NORMAL, item[0])
            )
        }


def _figure(
    result: Result, image: Image, inspection: Inspection, threshold: float | None
) -> Figure:
    # Labels would be too small to read here; the caption states the largest measure instead.
    overlay = draw_overlay(image, inspection.mask, truth=result.truth)
    panels = (
        ("photograph", image),
        ("nearest normal image", inspection.restored),
        ("score", heat_map(inspection.score, threshold)),
        ("defects" if result.truth is None else "defects (truth in blue)", overlay),
    )
    caption = f"{result.source.name}: {result.record['verdict']}, {_found(result, inspection)}"
    return Figure(png_bytes(side_by_side(panels, height=_HEIGHT)), caption)


def _found(result: Result, inspection: Inspection) -> str:
    record = result.record
    found = f"{len(record['regions'])} region" + ("" if len(record["regions"]) == 1 else "s")
    if inspection.regions:
        found += f", the largest {label_of(inspection.regions[0])}"
    return (
        f"{found}, {record['defect_area']} px of defect, score {record['image_score']:.4g}, "
        f"{record['steps']} steps ({record['status']}), {record['latency_ms']:.0f} ms"
    )
