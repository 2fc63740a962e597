"""From the searched windows to the frame: paste, judge every part, clean the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.searches import F2padSettings
from unblemish.runtime.crops import Parts
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.candidates import without_specks
from unblemish.runtime.methods.f2pad_initial import Initial
from unblemish.runtime.methods.f2pad_plan import Plan
from unblemish.runtime.methods.f2pad_search import Solved
from unblemish.runtime.methods.guard import is_worse, strong_core
from unblemish.runtime.methods.refined import Refined
from unblemish.runtime.solvers.protocol import Float

Bool = NDArray[np.bool_]

_LIKE = 0.75  # of the frame's peak: parts below are not what the detector means
_WORST_FIRST = (
    Status.NON_FINITE, Status.DEADLINE, Status.MAX_STEPS, Status.CONVERGED, Status.PLAIN,
)  # fmt: skip


@dataclass(frozen=True)
class Assembly:
    """How windows become a result.

    Args:
        threshold: of the detector's map. usual: what normal frames reach, as a share of it. Below,
            or far below the frame's own peak, parts that are not trusted are dropped: normal frames
            have parts above the threshold, and beside a defect only its like count.
    """

    plan: Plan
    settings: F2padSettings
    threshold: float
    usual: float

    def __call__(
        self, unit: Float, initial: Initial, parts: Parts, solved: Sequence[Solved]
    ) -> Refined:
        """The frame `unit` (H, W, C) in [0, 1], refined; `Refined.seconds` is left empty."""
        canvas = _Canvas(unit)
        core = strong_core(initial.strange, initial.mask)
        kept = np.zeros(initial.mask.shape, np.bool_)
        count = 0
        tolerance = self.settings.tolerance * self.settings.unit
        for one in solved:
            canvas.paste(one, parts, self.settings.unit)
        found = self._cleaned(canvas.mask)
        scale = tolerance / self.threshold
        boxes = {part.number: part.box.slices for part in parts.items}
        usual = max(self.usual, _LIKE * float(initial.strange.max()))
        for one in solved:
            for part, before, after in zip(one.parts, one.before, one.after, strict=True):
                box = boxes[part]
                mine = parts.labels[box] == part
                mask, plain = found[box] & mine, initial.mask[box] & mine
                if not is_worse(mask, plain, core[box] & mine, before, after, self.plan.rules):
                    continue
                plain &= bool(initial.strange[box][mine].max() > usual)
                kept[box] |= mine
                count += int(plain.any())
                canvas.residual[box][mine] = (plain * initial.plain[box] * np.float32(scale))[mine]
                found[box][mine] = plain[mine]
        restored = np.where(found[:, :, None], canvas.restored, unit)
        order = [s.status for s in solved]
        return Refined(
            restored=restored,
            residual=canvas.residual,
            mask=found,
            free=initial.free,
            strange=initial.strange,
            kept=kept,
            regions=len(parts.items),
            kept_plain=count,
            status=next(s for s in _WORST_FIRST if s in order),
            steps=max(s.steps for s in solved),
            objective=float(sum(s.value for s in solved)),
            trace=_summed([s.trace for s in solved]),
            seconds={},
        )

    def _cleaned(self, mask: Bool) -> Bool:
        """The paper's opening, or only specks removed: opening eats the thinnest defects."""
        if self.plan.opening > 1:
            side = np.ones((self.plan.opening,) * 2, np.uint8)
            return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, side) > 0)
        return without_specks(mask, self.plan.least_area)


class _Canvas:
    """Native images that the results are pasted on."""

    def __init__(self, unit: Float) -> None:
        self._unit = unit
        self.restored = np.array(unit)
        self.mask = np.zeros(unit.shape[:2], np.bool_)
        self.residual = np.zeros(unit.shape[:2], np.float32)

    def paste(self, solved: Solved, parts: Parts, unit: float) -> None:
        """Differences of a window, brought to native size, on the pixels of its parts."""
        rows, columns = solved.native(self.mask.shape).slices
        mine = np.isin(parts.labels[rows, columns], solved.parts)
        shape = mine.shape
        anomaly, clean = (
            _enlarged(a.transpose(1, 2, 0) * np.float32(unit), *shape)
            for a in (solved.anomaly, solved.clean)
        )
        flagged = _enlarged(solved.mask[:, :, None].astype(np.float32), *shape)[:, :, 0] >= 0.5
        self.mask[rows, columns][mine] = flagged[mine]
        distance = np.sqrt(np.square(anomaly).mean(axis=2))
        self.residual[rows, columns][mine] = distance[mine]
        restored = np.clip(self._unit[rows, columns] - clean, 0, 1)
        self.restored[rows, columns][mine] = restored[mine]


def _enlarged(image: Float, height: int, width: int) -> Float:
    if image.shape[:2] == (height, width):
        return image
    large = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large, np.float32).reshape(height, width, -1)


def _summed(traces: Sequence[NDArray[np.float64]]) -> tuple[float, ...]:
    """Sum by step; a region that has ended counts with its last value."""
    longest = max((len(t) for t in traces), default=0)
    total = np.zeros(longest)
    for trace in traces:
        if len(trace):
            total += np.pad(trace, (0, longest - len(trace)), mode="edge")
    return tuple(float(v) for v in total)
