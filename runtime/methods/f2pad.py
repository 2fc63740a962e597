"""F2PAD: from what a detector finds unusual to the pixels that make it so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Detector as Record
from unblemish.bundle.manifest import F2padSettings, Preprocess
from unblemish.errors import BundleError
from unblemish.kernels.api import Kernels
from unblemish.runtime.crops import (
    Grid,
    Parts,
    find_regions,
    label_parts,
    owners,
    whole_regions,
)
from unblemish.runtime.detectors.load import Detector
from unblemish.runtime.frames import to_channels
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.inpainting import ClassicalInpainter, Inpainter
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.candidates import without_specks
from unblemish.runtime.methods.colour import colour_maps
from unblemish.runtime.methods.decomposition import Prior, in_units
from unblemish.runtime.methods.f2pad_batch import Frame, batches, make_batch, reduce
from unblemish.runtime.methods.f2pad_choice import RegionChoice
from unblemish.runtime.methods.f2pad_plan import Plan, plan_for
from unblemish.runtime.methods.f2pad_search import RegionSearch, Solved
from unblemish.runtime.methods.guard import is_worse, strong_core
from unblemish.runtime.methods.refined import Refined
from unblemish.runtime.resampling import axes
from unblemish.runtime.solvers.loop import Clock, share_of
from unblemish.runtime.solvers.protocol import Float

Bool = NDArray[np.bool_]

_BATCH_PIXELS = 2 * 224 * 224  # model px of the crops of a batch: more leave the caches
_LIKE = 0.75  # of the frame's peak: parts below are not what the detector means
_LARGEST = 1 << 18  # pixels of a region; larger ones are searched at a reduced size
_WORST_FIRST = (
    Status.NON_FINITE, Status.DEADLINE, Status.MAX_STEPS, Status.CONVERGED, Status.PLAIN,
)  # fmt: skip


@dataclass(frozen=True)
class _Initial:
    """Initial mask m0, what may move, and the maps, all native: (H, W).

    Args:
        plain: the detector's map. strange: what exceeds its threshold by how much, as a share of
            it; where colours are rarer than in any normal frame, at least by how much those do.
    """

    plain: Float
    strange: Float
    mask: Bool
    free: Bool


class F2pad:
    """Refine what a detector found, at native resolution.

    Algorithm 1: initial mask, start by inpainting, search of n with x = n + a on the regions
    around the mask, final mask where a is not zero, n once more inside it without the penalty.
    Where the result is worse than the plain mask by the rules of `guard`, the plain one is kept,
    or nothing where the detector's map stays within what normal frames reach.

    Args:
        bundle: of a detector.
        settings: instead of the bundle's.
        schedule: 'fast' (crops, weights in proportion to the gain) or 'paper' (whole model images,
            the paper's settings).
        threshold: of the initial mask, instead of the detector's.
        inpainter: fills the regions for the start.
    Raises: BundleError where the bundle's detector was not calibrated and no threshold is given.
    Source: seed 003, algorithm 1.
    """

    def __init__(
        self,
        bundle: Bundle,
        detector: Detector,
        kernels: Kernels,
        settings: F2padSettings | None = None,
        schedule: str = "fast",
        *,
        threshold: float | None = None,
        inpainter: Inpainter | None = None,
        plan: Plan | None = None,
    ) -> None:
        record = detector.record
        self._preprocess: Preprocess = bundle.manifest.preprocess
        self._settings = settings or bundle.manifest.f2pad
        self._plan = plan or plan_for(schedule, self._settings)
        chosen = record.mask_threshold if threshold is None else threshold
        if chosen is None:
            raise BundleError(
                f"bundle {bundle.manifest.name} was not calibrated: it has no threshold of the "
                "initial mask. Run `unblemish calibrate` on it first."
            )
        self._threshold = float(chosen)
        self._record = record
        self._polarity = bundle.manifest.rgi.polarity
        self._geometry = Geometry(self._preprocess)
        self._inpaint: Inpainter = inpainter or ClassicalInpainter()
        self._colours = prior_of(record, self._settings)
        self._search = self._searcher(detector, kernels)

    def refine(
        self,
        unit_frame: Float,
        model_images: Float,
        maps: Float,
        deadline: float | None = None,
        clock: Clock = time.perf_counter,
    ) -> Refined:
        """Refine one frame.

        Args:
            unit_frame: (H, W, C) float32 in [0, 1], as `to_unit` gives it.
            model_images: (tiles, C, h, w) its model images.
            maps: (tiles, h, w) the detector's plain maps of them.
            deadline: time on the clock at which the search must have ended, or None.
        """
        began = clock()
        unit = np.ascontiguousarray(to_channels(unit_frame, self._preprocess.channels))
        initial = self._initial(maps, model_images, unit.shape[:2])
        if not initial.mask.any():
            return _nothing(unit, initial.strange, clock() - began)
        spread = [axes(self._preprocess, unit.shape, t) for t in range(len(model_images))]
        parts = label_parts(initial.free, owners(spread, (unit.shape[0], unit.shape[1])))
        start = self._inpaint(unit, initial.free)
        prepared = clock()
        solved = self._solve(unit, start, model_images, initial, parts, deadline, clock)
        searched = clock()
        refined = self._assemble(unit, initial, parts, solved)
        seconds = {
            "start": prepared - began,
            "search": searched - prepared,
            "assemble": clock() - searched,
        }
        return replace(refined, seconds=seconds)

    def _initial(self, maps: Float, images: Float, shape: tuple[int, ...]) -> _Initial:
        """Threshold, in each part at least at a share of its own peak; then dilate, model px."""
        strange = maps / np.float32(self._threshold)
        if self._plan.choose and self._colours is not None and self._colours.level:
            colours = colour_maps(images, self._colours, self._preprocess)
            strange = np.maximum(strange, colours / np.float32(self._colours.level))
        above = strange > 1
        if self._plan.peak_share:
            above = np.stack([
                _near_peaks(m, a, self._plan.peak_share) for m, a in zip(maps, above, strict=True)
            ])  # fmt: skip
        side = 2 * self._settings.dilation + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        around = np.stack([cv2.dilate(a.astype(np.uint8), disc) for a in above])
        stacked = np.stack([maps, strange, above, around], axis=1, dtype=np.float32)
        native = self._geometry.to_native(stacked, shape)
        mask = native[:, :, 2] > 0.5
        plain, strange = (np.ascontiguousarray(native[:, :, k]) for k in (0, 1))
        return _Initial(plain, strange, mask, mask | (native[:, :, 3] > 0.5))

    def _solve(
        self,
        unit: Float,
        start: Float,
        images: Float,
        initial: _Initial,
        parts: Parts,
        deadline: float | None,
        clock: Clock,
    ) -> list[Solved]:
        """Search all regions, those too large for it at a reduced size."""
        whole = self._plan.whole
        sizes = [unit[:, :, 0].size if whole else part.box.area for part in parts.items]
        factors = [_factor(size) for size in sizes]
        levels = sorted(set(factors))
        native = self._native(unit, start, images, initial, parts)
        grid, solved = self._grid(), []
        for level, factor in enumerate(levels):
            chosen = [p for p, f in zip(parts.items, factors, strict=True) if f == factor]
            frame, chosen = reduce(native, chosen, factor)
            regions = (whole_regions if whole else find_regions)(chosen, frame.axes, grid)
            groups = batches(regions, _BATCH_PIXELS)
            for number, group in enumerate(groups):
                waiting = len(groups) - number + len(levels) - level - 1
                until = share_of(deadline, waiting, clock)
                solved += self._search.solve(frame, make_batch(frame, group), until, clock)
        return solved

    def _native(
        self, unit: Float, start: Float, tiles: Float, initial: _Initial, parts: Parts
    ) -> Frame:
        images = self._geometry.unit_to_model(start)
        scale = np.float32(1 / self._settings.unit)
        return Frame(
            np.ascontiguousarray(unit.transpose(2, 0, 1) * scale),
            np.ascontiguousarray(start.transpose(2, 0, 1) * scale),
            images,
            tiles,
            parts.labels,
            initial.mask,
            initial.strange,
            initial.plain,
            [axes(self._preprocess, unit.shape, tile) for tile in range(len(images))],
            self._settings.unit * (self._preprocess.high - self._preprocess.low),
        )

    def _grid(self) -> Grid:
        p, whole = self._preprocess, self._plan.whole
        border = max(self._plan.radius, 1)
        margin = max(p.height, p.width) if whole else self._plan.margin
        return Grid(p.height, p.width, self._record.align, margin, border)

    def _assemble(
        self, unit: Float, initial: _Initial, parts: Parts, solved: Sequence[Solved]
    ) -> Refined:
        """Paste the windows back, judge every part, clean the mask."""
        canvas = _Canvas(unit)
        core = strong_core(initial.strange, initial.mask)
        kept = np.zeros(initial.mask.shape, np.bool_)
        count = 0
        tolerance = self._settings.tolerance * self._settings.unit
        for one in solved:
            canvas.paste(one, parts, self._settings.unit)
        found = self._cleaned(canvas.mask)
        usual = self._usual(initial.strange)
        for one in solved:
            for part, before, after in zip(one.parts, one.before, one.after, strict=True):
                mine = parts.labels == part
                mask, plain = found & mine, initial.mask & mine
                if is_worse(mask, plain, core & mine, before, after, self._plan.rules):
                    plain &= bool(initial.strange[mine].max() > usual)
                    kept |= mine
                    count += int(plain.any())
                    canvas.keep(mine, plain, initial.plain, tolerance / self._threshold)
                    found = np.where(mine, plain, found)
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

    def _usual(self, strange: Float) -> float:
        """How far a part must exceed the threshold to keep its plain outline.

        Normal frames have parts above the threshold; beside a defect only its like count.
        """
        normal = (self._record.normal_peak or self._threshold) / self._threshold
        return max(normal, _LIKE * float(strange.max()))

    def _cleaned(self, mask: Bool) -> Bool:
        """The paper's opening, or only specks removed: opening eats the thinnest defects."""
        if self._plan.opening > 1:
            side = np.ones((self._plan.opening,) * 2, np.uint8)
            return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, side) > 0)
        return without_specks(mask, self._plan.least_area)

    def _searcher(self, detector: Detector, kernels: Kernels) -> RegionSearch | RegionChoice:
        if self._plan.choose:
            level = self._record.cell_level
            return RegionChoice(
                detector, self._settings, self._preprocess, self._colours, level, self._polarity
            )
        prior = prior_of(self._record, self._settings, self._settings.unit)
        return RegionSearch(detector, kernels, self._settings, self._plan, prior, self._preprocess)


def prior_of(record: Record, settings: F2padSettings, unit: float = 1.0) -> Prior | None:
    """The mixture chosen, where the detector has one, in units of that intensity."""
    if not record.mixtures:
        return None
    chosen = record.mixtures[min(settings.components, len(record.mixtures) - 1)]
    return in_units(chosen, unit)


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

    def keep(self, mine: Bool, plain: Bool, plain_map: Float, scale: float) -> None:
        """Give a part its plain outline: the score is the plain map, scaled."""
        self.residual[mine] = np.where(plain, plain_map * np.float32(scale), 0)[mine]


def _near_peaks(plain: Float, above: Bool, share: float) -> Bool:
    """Of every connected part, the pixels above that share of its peak."""
    count, labels = cv2.connectedComponents(above.astype(np.uint8))
    peaks = np.full(count, np.inf, np.float32)
    for part in range(1, count):
        peaks[part] = plain[labels == part].max()
    return np.asarray(above & (plain > share * peaks[labels]))


def _nothing(unit: Float, strange: Float, seconds: float) -> Refined:
    empty = np.zeros(unit.shape[:2], np.bool_)
    return Refined(
        np.array(unit), np.zeros(unit.shape[:2], np.float32), empty, empty.copy(), strange,
        empty.copy(), 0, 0, Status.PLAIN, 0, 0.0, (), {"start": seconds},
    )  # fmt: skip


def _factor(pixels: int) -> int:
    """By how much a region is reduced for the search."""
    return max(int(np.ceil(np.sqrt(pixels / _LARGEST))), 1)


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
