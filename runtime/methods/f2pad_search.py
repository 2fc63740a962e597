"""The search of a batch of regions: weights, descent, re-estimation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.bundle.searches import F2padSettings
from unblemish.kernels.api import Kernels
from unblemish.runtime.crops import Box, Region
from unblemish.runtime.detectors.crops import CropScores, FeatureCrops
from unblemish.runtime.detectors.load import Detector
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.decomposition import Prior, Weights
from unblemish.runtime.methods.f2pad_batch import Batch, Frame
from unblemish.runtime.methods.f2pad_descent import Descent, HostDescent
from unblemish.runtime.methods.f2pad_plan import Plan, balanced_weights, paper_weights
from unblemish.runtime.solvers.loop import Clock, Outcome, share_of
from unblemish.runtime.solvers.protocol import Double, Float

Bool = NDArray[np.bool_]
_SEARCH_SHARE = 4  # of the time, the re-estimation gets one in so many parts


@dataclass(frozen=True)
class Solved:
    """Where the search of one region ended.

    Args:
        window: of the frame of the search, whose size was `shape`.
        parts: numbers of the connected parts in it.
        anomaly: (C, H, W) x - n in units, 0 where nothing was free. clean: the same after
            re-estimation inside the mask. mask: (H, W) where a is not zero.
        before, after: anomaly scores of the cells of every part, in the frame and at the end.
        value, status, steps, trace: of the search.
    """

    window: Box
    shape: tuple[int, int]
    parts: tuple[int, ...]
    anomaly: Float
    clean: Float
    mask: Bool
    before: tuple[float, ...]
    after: tuple[float, ...]
    value: float
    status: Status
    steps: int
    trace: Double

    def native(self, shape: tuple[int, ...]) -> Box:
        """The window in a frame of another size."""
        down, across = shape[0] / self.shape[0], shape[1] / self.shape[1]
        w = self.window
        return Box(
            round(w.top * down), round(w.left * across), round(w.bottom * down),
            round(w.right * across),
        )  # fmt: skip


@dataclass(frozen=True)
class RegionSearch:
    """Search batches of regions of one bundle.

    Args:
        prior: of normal pixels, in units; None leaves the term out.
        elsewhere: the descent of a batch where it does not run on the host; None where it does.
    """

    detector: Detector
    kernels: Kernels
    settings: F2padSettings
    plan: Plan
    prior: Prior | None
    preprocess: Preprocess
    elsewhere: Callable[[Batch], Descent | None] | None = None

    def solve(
        self, frame: Frame, batch: Batch, deadline: float | None, clock: Clock
    ) -> list[Solved]:
        """Descend from n0, then once more without the penalty inside the mask found."""
        descent = self._descent(frame, batch)
        at_frame, cells = descent.scored(batch.x)
        at_start, _ = descent.scored(batch.start)
        weights = self._weights(batch, at_frame, at_start)
        limits = self.plan.limits(_first_share(deadline, clock))
        outcome = descent.descend(weights, batch.free, batch.start, limits, clock)
        anomaly = np.where(batch.free > 0, batch.x - outcome.best[0], np.float32(0))
        clean = self._again(batch, descent, weights, anomaly, deadline, clock)
        _, after = descent.scored(batch.x - clean)
        return [
            self._solved(frame, batch, row, anomaly, clean, cells, after, outcome)
            for row in range(len(batch.x))
        ]

    def _descent(self, frame: Frame, batch: Batch) -> Descent:
        found = None if self.elsewhere is None else self.elsewhere(batch)
        if found is not None:
            return found
        scores = self._scores(frame, batch)
        return HostDescent(self.kernels, self.settings, self.plan, self.prior, batch, scores)

    def _scores(self, frame: Frame, batch: Batch) -> CropScores:
        whole = None
        if not self.plan.whole:
            tiles = sorted({r.tile for r in batch.regions})
            of_tile = {
                t: np.array(self.detector.features(frame.images[t : t + 1])[0]) for t in tiles
            }
            whole = [of_tile[r.tile] for r in batch.regions]
        stride = self.detector.record.stride
        blocks = _blocks(batch.near, stride)
        counted = np.ones_like(blocks) if self.plan.whole else self._counted(blocks)
        return FeatureCrops(
            self.detector,
            batch.view.images,
            whole,
            [r.crop for r in batch.regions],
            counted,
            self.preprocess.width // stride,
        )

    def _counted(self, touched: Bool) -> Bool:
        """Cells that the free pixels move noticeably: those that the crop holds."""
        return np.ones_like(touched)

    def _weights(self, batch: Batch, before: Double, after: Double) -> Weights:
        if self.plan.whole:
            return paper_weights(self.settings, self.plan, batch.flagged, batch.area)
        channels = batch.x.shape[1]
        return balanced_weights(
            self.settings, self.plan, batch.flagged, batch.area, before, after, channels
        )

    def _again(
        self,
        batch: Batch,
        descent: Descent,
        weights: Weights,
        anomaly: Float,
        deadline: float | None,
        clock: Clock,
    ) -> Float:
        """Re-estimation: beta = 0, and only the pixels found anomalous are free."""
        distance = np.sqrt(np.square(anomaly).sum(axis=1, keepdims=True))
        free = (distance > self.settings.tolerance).astype(np.uint8)
        clean = np.where(free > 0, anomaly, np.float32(0))
        if not free.any():
            return clean
        without = replace(weights, sparsity=np.zeros_like(weights.sparsity[:1]))
        limits = replace(self.plan.limits(deadline), max_steps=self.plan.again, interim=0)
        outcome = descent.descend(without, free, batch.x - clean, limits, clock)
        return np.where(free > 0, batch.x - outcome.best[0], np.float32(0))

    def _solved(
        self,
        frame: Frame,
        batch: Batch,
        row: int,
        anomaly: Float,
        clean: Float,
        before: Float,
        after: Float,
        outcome: Outcome,
    ) -> Solved:
        region = batch.regions[row]
        touched = self._touched(frame, batch, row, region)
        return Solved(
            window=batch.windows[row],
            shape=frame.shape,
            parts=region.parts,
            anomaly=anomaly[row],
            clean=clean[row],
            mask=np.sqrt(np.square(anomaly[row]).sum(axis=0)) > self.settings.tolerance,
            before=tuple(float(before[row][cells].sum()) for cells in touched),
            after=tuple(float(after[row][cells].sum()) for cells in touched),
            value=float(outcome.value[row]),
            status=outcome.status[row],
            steps=int(outcome.steps[row]),
            trace=outcome.trace[row],
        )

    def _touched(self, frame: Frame, batch: Batch, row: int, region: Region) -> list[Bool]:
        """The cells over every part."""
        labels = frame.labels[batch.windows[row].slices]
        view, stride = batch.view, self.detector.record.stride
        return [
            _blocks(
                (view.down[row] @ (labels == part).astype(np.float32) @ view.across[row])[None],
                stride,
            )[0]
            for part in region.parts
        ]


def _blocks(near: Float, stride: int) -> Bool:
    """(N, h, w) model pixels -> (N, h / stride, w / stride) cells that hold one above 0."""
    n, h, w = near.shape
    cells = near.reshape(n, h // stride, stride, w // stride, stride)
    touched: Bool = cells.max(axis=(2, 4)) > 0
    return touched


def _first_share(deadline: float | None, clock: Clock) -> float | None:
    """The search ends so early that time is left for the re-estimation."""
    if deadline is None:
        return None
    first = share_of(deadline, _SEARCH_SHARE, clock)
    assert first is not None
    return deadline - (first - clock())
