"""The fast schedule: the objective of F2PAD over a few masks, each with its own restored image.

Minimising eq. (12) pixel by pixel takes hundreds of steps, most of which move pixels that are not
anomalous at all. Here n is the frame, filled from its border inside a mask m, and a is not zero
exactly on m. So l_a is the number of flagged pixels, and

    J(m) = sum over cells of max(s(n_m) / s_95 - 1/2, 0) + beta (|m| + 4 sum outside m of o)

with o in [0, 1] how much rarer a pixel's colour is than those of normal parts (the pixel prior's
share: n agrees with x there), is compared over candidates for m and the empty mask, by one batch of
forward passes, then over the neighbours of the best one as long as that pays. What the best mask
lowers J by says, without labels, whether it is to be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.bundle.searches import F2padSettings, Polarity
from unblemish.runtime.detectors.crops import Versions
from unblemish.runtime.detectors.load import Detector
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.candidates import (
    candidate_masks,
    colour_odds,
    neighbouring_masks,
)
from unblemish.runtime.methods.decomposition import Prior, View
from unblemish.runtime.methods.f2pad_batch import Batch, Frame
from unblemish.runtime.methods.f2pad_search import Solved
from unblemish.runtime.solvers.loop import Clock
from unblemish.runtime.solvers.protocol import Double, Float

Bool = NDArray[np.bool_]

_HINGE = 0.5  # of the usual level of cells: scores below say nothing
_CELL = 16  # model px that J counts as one cell, whatever the detector's stride
_ODD = 4.0  # beta that a pixel of a colour that no normal part has costs unless it is flagged
_ROUNDS = 3  # of going on from the best mask to its neighbours


@dataclass(frozen=True)
class Choice:
    """The mask of one region.

    Args:
        mask: (h, w) of its window. restored: (C, h, w) in [0, 1].
        value: J of it. empty: J of the empty mask. tried: masks compared.
    """

    mask: Bool
    restored: Float
    value: float
    empty: float
    tried: int

    @property
    def ratio(self) -> float:
        """What is left of J; 1 where nothing pays."""
        return self.value / self.empty if self.empty > 0 else 1.0


@dataclass(frozen=True)
class _Comparison:
    """J of masks of one window.

    Args:
        versions: scores of the crop.
        x: (C, h, w) the window in [0, 1]. unit: intensity that `versions` counts as 1.
        area: model px per pixel. weight, hinge: of the score of a cell. beta: of a pixel.
        odd: (h, w) in [0, 1], how much rarer the colours are than those of normal parts.
    """

    versions: Versions
    x: Float
    unit: float
    area: float
    weight: float
    hinge: float
    beta: float
    odd: Float

    def first(self, masks: Sequence[Bool]) -> Choice:
        """The best of the masks and the empty mask, all in one batch."""
        empty = np.zeros(self.x.shape[1:], np.bool_)
        filled = self._filled([empty, *masks])
        values = self._values(filled, [empty, *masks])
        before = Choice(empty, self.x, float(values[0]), float(values[0]), 1)
        return self._better(before, masks, filled[1:], values[1:])

    def best(self, masks: Sequence[Bool], before: Choice) -> Choice:
        """The best of the masks, or `before` where none is better."""
        if not masks:
            return before
        filled = self._filled(masks)
        return self._better(before, masks, filled, self._values(filled, masks))

    def _filled(self, masks: Sequence[Bool]) -> Float:
        return np.stack([restored(self.x, mask, self.area) for mask in masks])

    @staticmethod
    def _better(before: Choice, masks: Sequence[Bool], filled: Float, values: Double) -> Choice:
        if not masks:
            return before
        at = int(np.argmin(values))
        tried = before.tried + len(masks)
        if not values[at] < before.value:
            return before
        return Choice(masks[at], filled[at], float(values[at]), before.empty, tried)

    def _values(self, filled: Float, masks: Sequence[Bool]) -> Double:
        found = self.versions.scores(filled / np.float32(self.unit))
        excess = found - np.float32(self.hinge)
        total = np.maximum(excess, 0).sum(axis=1, dtype=np.float64) * self.weight
        flagged = np.array([int(mask.sum()) for mask in masks])
        left = np.array([float(self.odd[~mask].sum()) for mask in masks])
        return np.asarray(total + self.beta * (flagged + _ODD * left), np.float64)


@dataclass(frozen=True)
class RegionChoice:
    """Choose among masks, region by region.

    Args:
        prior: of normal pixels in [0, 1] intensity, or None.
        polarity: which differences count, see `RgiSettings`.
        level: score of a cell that 1 in 20 normal cells exceeds; None to take the frame's own.
    """

    detector: Detector
    settings: F2padSettings
    preprocess: Preprocess
    prior: Prior | None
    level: float | None
    polarity: Polarity = "both"

    def solve(
        self, frame: Frame, batch: Batch, deadline: float | None, clock: Clock
    ) -> list[Solved]:
        """One `Solved` per region; regions whose turn comes after the deadline stay as they are."""
        level = self.level or usual_level(frame)
        out = []
        for row in range(len(batch.regions)):
            if deadline is not None and clock() >= deadline:
                out.append(self._solved(frame, batch, row, None))
                continue
            choice = self._choose(frame, batch, row, level)
            out.append(self._solved(frame, batch, row, choice))
        return out

    def _choose(self, frame: Frame, batch: Batch, row: int, level: float) -> Choice:
        unit, area = np.float32(self.settings.unit), float(batch.area[row])
        window, free = batch.windows[row].slices, batch.free[row, 0] > 0
        x, fill = batch.x[row] * unit, batch.start[row] * unit
        odds = colour_odds(frame.palette, window, free, frame.map[window] - 1)
        rarity = None if self.prior is None else self.prior.distances(x)
        masks = candidate_masks(x, fill, free, odds, rarity, area, self.polarity)
        odd = self._odd(rarity, free.shape)
        compare = self._comparison(frame, batch, row, level, odd)
        choice = compare.first(masks)
        core = frame.map[window] > 1
        for _ in range(_ROUNDS):
            better = compare.best(neighbouring_masks(choice.mask, free, core, area), choice)
            if better is choice:
                break
            choice = better
        return choice

    def _comparison(
        self, frame: Frame, batch: Batch, row: int, level: float, odd: Float
    ) -> _Comparison:
        region, view = batch.regions[row], batch.view
        one, area = slice(row, row + 1), float(batch.area[row])
        tile = frame.tiles[region.tile : region.tile + 1]
        seen = np.ascontiguousarray(tile[(slice(None), slice(None), *region.crop.slices)])
        about = View(batch.x[one], seen, view.down[one], view.across[one], view.gain)
        return _Comparison(
            frame.seen.versions(region.tile, region.crop, about),
            batch.x[row] * np.float32(self.settings.unit),
            self.settings.unit,
            area,
            self.detector.record.stride**2 / (_CELL * level),
            _HINGE * level,
            self.settings.beta * area,
            odd,
        )

    def _odd(self, rarity: Float | None, shape: tuple[int, ...]) -> Float:
        if rarity is None or self.prior is None or self.prior.level is None:
            return np.zeros(shape, np.float32)
        excess = rarity / np.float32(self.prior.level) - 1
        return np.asarray(np.clip(excess, 0, 1), np.float32)

    def _solved(self, frame: Frame, batch: Batch, row: int, choice: Choice | None) -> Solved:
        region, x = batch.regions[row], batch.x[row]
        mask = np.zeros(x.shape[1:], np.bool_) if choice is None else choice.mask
        change = np.zeros_like(x)
        if choice is not None:
            n = choice.restored / np.float32(self.settings.unit)
            change = np.where(mask, x - n, np.float32(0)).astype(np.float32)
        value = 0.0 if choice is None else choice.value
        ratio = 1.0 if choice is None else choice.ratio
        return Solved(
            window=batch.windows[row],
            shape=frame.shape,
            parts=region.parts,
            anomaly=change,
            clean=change,
            mask=mask,
            before=(1.0,) * len(region.parts),
            after=(ratio,) * len(region.parts),
            value=value,
            status=Status.DEADLINE if choice is None else Status.CONVERGED,
            steps=0 if choice is None else choice.tried,
            trace=np.array([value]),
        )


def usual_level(frame: Frame) -> float:
    """The level from the frame itself: the map (of distances, smoothed) outside its regions."""
    outside = frame.distances[frame.labels == 0]
    values = outside if outside.size else frame.distances.reshape(-1)
    return max(float(np.quantile(values, 0.95)) ** 2, 1e-12)


def restored(x: Float, mask: Bool, area: float) -> Float:
    """A window (C, h, w) in [0, 1], filled from the border of the mask, one model px wider."""
    if not mask.any():
        return x
    side = 2 * max(round(1 / np.sqrt(area)), 1) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    hole = cv2.dilate(mask.astype(np.uint8), disc)
    if hole.all():
        return x
    levels = np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)
    # In 8 bits one call does all channels; what the eye of the network sees is no finer.
    planes = levels[0] if len(x) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))
    filled = cv2.inpaint(planes, hole, 3, cv2.INPAINT_TELEA)
    filled = filled[None] if len(x) == 1 else filled.transpose(2, 0, 1)
    new = filled.astype(np.float32) / np.float32(255)
    return np.where(hole > 0, new, x).astype(np.float32)
