"""From model images at the solution back to the frame: restored image, score map, mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.found import Found
from unblemish.runtime.frames import from_unit, to_channels
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.inspection import Status
from unblemish.runtime.solvers.protocol import Double, Float, Index

_WORST_FIRST = (
    Status.NON_FINITE,
    Status.DEADLINE,
    Status.MAX_STEPS,
    Status.CONVERGED,
    Status.PLAIN,
)


@dataclass(frozen=True)
class Tiles:
    """Where the search of every tile ended; (T, ...) each.

    Args:
        z: latents. images: model images. mask: M, one channel. value: objective at the target.
    """

    z: Float
    images: Float
    mask: Float
    value: Double
    status: tuple[Status, ...]
    steps: Index
    trace: tuple[Double, ...]

    @staticmethod
    def joined(parts: Sequence[Tiles]) -> Tiles:
        """Put batches behind each other."""
        return Tiles(
            z=np.concatenate([p.z for p in parts]),
            images=np.concatenate([p.images for p in parts]),
            mask=np.concatenate([p.mask for p in parts]),
            value=np.concatenate([p.value for p in parts]),
            status=tuple(s for p in parts for s in p.status),
            steps=np.concatenate([p.steps for p in parts]),
            trace=tuple(t for p in parts for t in p.trace),
        )

    def part(self, rows: slice) -> Tiles:
        """Some of the tiles."""
        return Tiles(
            self.z[rows],
            self.images[rows],
            self.mask[rows],
            self.value[rows],
            self.status[rows],
            self.steps[rows],
            self.trace[rows],
        )


def restore(
    tiles: Tiles,
    frame: NDArray[Any],
    unit: Float,
    geometry: Geometry,
    white: float | None,
    polarity: str = "both",
) -> Found:
    """Bring the tiles of one frame to its geometry and compare.

    Args:
        frame, unit: the frame as given, and as (H, W, 1 or 3) in [0, 1].
        polarity: see `score_of`.
    Returns: see `Found`. Where the model gave no finite number, the score is the model's whole
        range and the mask 1: a search that broke down hides nothing.
    """
    p = geometry.preprocess
    restored = geometry.to_native(tiles.images, unit.shape)
    native = geometry.to_intensity(to_channels(unit, p.channels))
    score = score_of(native - restored, polarity)
    mask = np.clip(geometry.to_native(tiles.mask, unit.shape)[:, :, 0], 0.0, 1.0)
    broken = ~np.isfinite(score)
    score[broken] = p.high - p.low
    mask[broken] = 1.0
    return Found(
        restored=from_unit(geometry.to_unit_range(restored), frame.dtype, white=white),
        score=score,
        mask=mask,
        z=tiles.z.copy(),
        status=worst(tiles.status),
        steps=int(tiles.steps.max()),
        objective=float(tiles.value.mean()),
        trace=mean_trace(tiles.trace),
    )


def score_of(residual: Float, polarity: str) -> Float:
    """Root mean square over the channels of the differences that count.

    Args:
        residual: frame - restored, (H, W, C) float32.
        polarity: 'both'; 'dark' or 'bright' where every defect is known to be darker or brighter
            than the part: noise of the other sign is then no longer in its way.
    Returns: (H, W) float32.
    """
    if polarity == "dark":
        residual = np.minimum(residual, 0)
    elif polarity == "bright":
        residual = np.maximum(residual, 0)
    return np.asarray(np.sqrt(np.mean(residual * residual, axis=2, dtype=np.float32)))


def worst(status: Sequence[Status]) -> Status:
    """Of the tile that fared worst."""
    return min(status, key=_WORST_FIRST.index)


def mean_trace(traces: Sequence[Double]) -> tuple[float, ...]:
    """Mean over the tiles by step; a tile that ended keeps its last value."""
    length = max(len(trace) for trace in traces)
    rows = [np.pad(trace, (0, length - len(trace)), mode="edge") for trace in traces if len(trace)]
    return tuple(float(v) for v in np.mean(rows, axis=0)) if rows else ()
