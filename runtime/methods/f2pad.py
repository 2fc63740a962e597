"""F2PAD: from what a detector finds unusual to the pixels that make it so."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Detector as Record
from unblemish.bundle.manifest import Preprocess
from unblemish.bundle.searches import F2padSettings
from unblemish.errors import BundleError
from unblemish.kernels.api import Kernels
from unblemish.runtime.crops import (
    BATCH_PIXELS,
    Grid,
    Parts,
    find_regions,
    label_parts,
    territories,
    whole_regions,
)
from unblemish.runtime.detectors.crops import Tiles
from unblemish.runtime.detectors.load import Detector
from unblemish.runtime.frames import to_channels
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.inpainting import ClassicalInpainter, Inpainter
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.decomposition import Prior, in_units
from unblemish.runtime.methods.f2pad_assembly import Assembly
from unblemish.runtime.methods.f2pad_batch import Batch, Frame, batches, make_batch, reduce
from unblemish.runtime.methods.f2pad_choice import RegionChoice
from unblemish.runtime.methods.f2pad_descent import Descent
from unblemish.runtime.methods.f2pad_initial import Initial, InitialMask
from unblemish.runtime.methods.f2pad_plan import Plan, plan_for
from unblemish.runtime.methods.f2pad_search import RegionSearch, Solved
from unblemish.runtime.methods.refined import Refined
from unblemish.runtime.resampling import axes
from unblemish.runtime.solvers.loop import Clock, share_of
from unblemish.runtime.solvers.protocol import Float

Bool = NDArray[np.bool_]
Elsewhere = Callable[[F2padSettings, Plan, Prior | None], Callable[[Batch], Descent | None]]

_LARGEST = 1 << 18  # pixels of a region; larger ones are searched at a reduced size


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
        device: settings, plan and prior -> where whole model images are descended on, see
            `F2padOnDevice`; None for the host.
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
        device: Elsewhere | None = None,
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
        self._record, self._sizes = record, detector.programs.sizes
        self._polarity = bundle.manifest.rgi.polarity
        self._geometry = Geometry(self._preprocess)
        self._inpaint: Inpainter = inpainter or ClassicalInpainter()
        self._colours = prior_of(record, self._settings)
        self._initial = InitialMask(
            self._plan, self._settings, self._preprocess, self._threshold, self._colours
        )
        usual = (record.normal_peak or self._threshold) / self._threshold
        self._assemble = Assembly(self._plan, self._settings, self._threshold, usual)
        self._detector = detector
        self._search = self._searcher(kernels, device)

    def refine(
        self,
        unit_frame: Float,
        model_images: Float,
        maps: Float,
        deadline: float | None = None,
        clock: Clock = time.perf_counter,
        *,
        seen: Tiles | None = None,
    ) -> Refined:
        """Refine one frame.

        Args:
            unit_frame: (H, W, C) float32 in [0, 1], as `to_unit` gives it.
            model_images: (tiles, C, h, w) its model images.
            maps: (tiles, h, w) the detector's plain maps of them.
            deadline: time on the clock at which the search must have ended, or None.
            seen: the model images under the detector; None to show them to it again.
        """
        began = clock()
        unit = np.ascontiguousarray(to_channels(unit_frame, self._preprocess.channels))
        initial = self._initial(maps, model_images, unit.shape[:2])
        if not initial.mask.any():
            return _nothing(unit, initial.strange, clock() - began)
        spread = [axes(self._preprocess, unit.shape, t) for t in range(len(model_images))]
        parts = label_parts(initial.free, territories(spread, (unit.shape[0], unit.shape[1])))
        start = self._inpaint(unit, initial.free)
        prepared = clock()
        tiles = seen or self._detector.tiles(model_images)
        native = self._native(unit, start, model_images, initial, parts, tiles)
        solved = self._solve(native, parts, deadline, clock)
        searched = clock()
        refined = self._assemble(unit, initial, parts, solved)
        seconds = {
            "start": prepared - began,
            "search": searched - prepared,
            "assemble": clock() - searched,
        }
        return replace(refined, seconds=seconds)

    def _solve(
        self, native: Frame, parts: Parts, deadline: float | None, clock: Clock
    ) -> list[Solved]:
        """Search all regions, those too large for it at a reduced size."""
        whole = self._plan.whole
        sizes = [native.labels.size if whole else part.box.area for part in parts.items]
        factors = [_factor(size) for size in sizes]
        levels = sorted(set(factors))
        grid, solved = self._grid(), []
        for level, factor in enumerate(levels):
            chosen = [p for p, f in zip(parts.items, factors, strict=True) if f == factor]
            frame, chosen = reduce(native, chosen, factor)
            regions = (whole_regions if whole else find_regions)(chosen, frame.axes, grid)
            groups = batches(regions, BATCH_PIXELS)
            for number, group in enumerate(groups):
                waiting = len(groups) - number + len(levels) - level - 1
                until = share_of(deadline, waiting, clock)
                solved += self._search.solve(frame, make_batch(frame, group), until, clock)
        return solved

    def _native(
        self,
        unit: Float,
        start: Float,
        tiles: Float,
        initial: Initial,
        parts: Parts,
        seen: Tiles,
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
            self._settings.unit,
            self._settings.unit * (self._preprocess.high - self._preprocess.low),
            seen,
        )

    def _grid(self) -> Grid:
        p, whole = self._preprocess, self._plan.whole
        border = max(self._plan.radius, 1)
        margin = max(p.height, p.width) if whole else self._plan.margin
        return Grid(p.height, p.width, self._record.align, margin, border, self._sizes)

    def _searcher(self, kernels: Kernels, device: Elsewhere | None) -> RegionSearch | RegionChoice:
        detector, settings, plan = self._detector, self._settings, self._plan
        if plan.choose:
            level = self._record.cell_level
            return RegionChoice(
                detector, settings, self._preprocess, self._colours, level, self._polarity
            )
        prior = prior_of(self._record, settings, settings.unit)
        elsewhere = device(settings, plan, prior) if device is not None and plan.whole else None
        return RegionSearch(detector, kernels, settings, plan, prior, self._preprocess, elsewhere)


def prior_of(record: Record, settings: F2padSettings, unit: float = 1.0) -> Prior | None:
    """The mixture chosen, where the detector has one, in units of that intensity."""
    if not record.mixtures:
        return None
    chosen = record.mixtures[min(settings.components, len(record.mixtures) - 1)]
    return in_units(chosen, unit)


def _nothing(unit: Float, strange: Float, seconds: float) -> Refined:
    empty = np.zeros(unit.shape[:2], np.bool_)
    return Refined(
        np.array(unit), np.zeros(unit.shape[:2], np.float32), empty, empty.copy(), strange,
        empty.copy(), 0, 0, Status.PLAIN, 0, 0.0, (), {"start": seconds},
    )  # fmt: skip


def _factor(pixels: int) -> int:
    """By how much a region is reduced for the search."""
    return max(int(np.ceil(np.sqrt(pixels / _LARGEST))), 1)
