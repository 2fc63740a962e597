"""Running moments of the features at every location, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.features.blas import one_thread
from unblemish.calibration.features.fitter import MEMORY, Float
from unblemish.calibration.features.storage import Scratch
from unblemish.errors import CalibrationError, ShapeError

Double = NDArray[np.float64]

_BLOCK_BYTES = 32 << 20  # of temporary float64 arrays


@dataclass(frozen=True)
class Block:
    """Moments of the locations `start`..`stop`.

    Args:
        mean: (n, c) float64.
        covariance: (n, c, c) float64, divided by the number of images.
        fourth: (n,) mean of ||f - mean||^4.
        rows: (n, images, c) float64, f - mean, where the images are few enough to be at hand.
    """

    start: int
    stop: int
    mean: Double
    covariance: Double
    fourth: Double
    rows: Double | None = None


class Moments:
    """Sums over images of y, y y^T, ||y||^2 y, ||y||^2 and ||y||^4, with y = f - shift.

    The shift is the mean of the first images: without one, the sums of squares of features that lie
    far from 0 would cancel. Images wait in a buffer, so that the sums, which are c times as large
    as an image, are passed through memory once for many images. Where all fit into the buffer there
    are no sums.

    Args:
        memory: bytes of the buffer and the sums; larger sums lie in a temporary file.
    """

    def __init__(self, *, memory: int = MEMORY) -> None:
        self.count = 0
        self.locations = self.channels = 0
        self._memory = memory
        self._waiting: list[Float] = []
        self._scratch = Scratch()
        self._scatter: Double | None = None

    def update(self, features: Float) -> None:
        """Add images: (batch, locations, c) float32."""
        if not self.count:
            self.locations, self.channels = features.shape[1:]
        if features.shape[1:] != (self.locations, self.channels):
            raise ShapeError(
                f"expected features (batch, {self.locations}, {self.channels}); "
                f"got {features.shape}."
            )
        if not np.isfinite(features).all():
            raise CalibrationError(
                "the features of a normal image hold NaN or infinite values. The weights are "
                "damaged or belong to another network."
            )
        self._waiting.append(np.array(features, np.float32))  # the caller may reuse its array
        self.count += features.shape[0]
        if sum(item.nbytes for item in self._waiting) >= self._patience():
            self._flush()

    def blocks(self) -> Iterator[Block]:
        """Moments of all locations, some at a time."""
        if self._scatter is None:
            yield from self._few()
            return
        self._flush()
        n = self.count
        for start, stop in self._ranges():
            part = slice(start, stop)
            y = self._sum[part] / n
            second = self._scatter[part] / n
            covariance = second - y[:, :, None] * y[:, None, :]
            yield Block(
                start, stop, self._shift[part] + y, covariance, self._fourth(part, y, second)
            )

    def mean_variance(self) -> Double:
        """Variance of a feature, averaged over the channels, at every location: (locations,)."""
        if self._scatter is None:
            waiting: Double = np.concatenate(self._waiting).var(axis=0, dtype=np.float64)
            variance: Double = waiting.mean(axis=1)
            return variance
        self._flush()
        spread = self._square / self.count - ((self._sum / self.count) ** 2).sum(axis=1)
        averaged: Double = np.maximum(spread, 0.0) / self.channels
        return averaged

    def close(self) -> None:
        """Remove the temporary file."""
        self._scatter = None
        self._waiting = []
        self._scratch.close()

    def _few(self) -> Iterator[Block]:
        images = np.concatenate(self._waiting)
        for start, stop in self._ranges(len(images)):
            rows = images[:, start:stop].transpose(1, 0, 2).astype(np.float64)
            mean = rows.mean(axis=1)
            rows -= mean[:, None]
            fourth = (np.einsum("lbc,lbc->lb", rows, rows) ** 2).mean(axis=1)
            covariance = rows.transpose(0, 2, 1) @ rows / len(images)
            yield Block(start, stop, mean, covariance, fourth, rows)

    def _patience(self) -> int:
        """Bytes of images that wait: more where every pass is one over a file."""
        on_disk = 8 * self.locations * self.channels**2 > self._memory
        return self._memory // (4 if on_disk else 32)

    def _fourth(self, part: slice, d: Double, second: Double) -> Double:
        """Mean of ||y - d||^4 with d the mean of y, from the sums.

        ||y - d||^2 = q - 2 y.d + D with q = ||y||^2 and D = ||d||^2. Squared and averaged, with
        mean(y) = d: mean(q^2) + 4 d' S d - 3 D^2 - 4 mean(q y).d + 2 D mean(q), S = mean(y y').
        """
        n = self.count
        big = (d * d).sum(axis=1)
        inner = np.einsum("li,lij,lj->l", d, second, d, optimize=True)
        third = (self._third[part] / n * d).sum(axis=1)
        mean: Double = (
            self._quartic[part] / n
            + 4 * inner
            - 3 * big**2
            - 4 * third
            + 2 * big * self._square[part] / n
        )
        return np.maximum(mean, 0.0)

    def _flush(self) -> None:
        if not self._waiting:
            return
        images = np.concatenate(self._waiting)
        self._waiting = []
        if self._scatter is None:
            self._allocate(images)
        with one_thread():
            for start, stop in self._ranges(images.shape[0]):
                self._add(slice(start, stop), images)

    def _add(self, part: slice, images: Float) -> None:
        assert self._scatter is not None
        y = images[:, part].transpose(1, 0, 2) - self._shift[part, None]
        square = np.einsum("lbc,lbc->lb", y, y)
        self._scatter[part] += y.transpose(0, 2, 1) @ y
        self._sum[part] += y.sum(axis=1)
        self._third[part] += np.einsum("lb,lbc->lc", square, y)
        self._square[part] += square.sum(axis=1)
        self._quartic[part] += (square * square).sum(axis=1)

    def _allocate(self, images: Float) -> None:
        shape = (self.locations, self.channels)
        self._shift: Double = images.mean(axis=0, dtype=np.float64)
        self._sum: Double = np.zeros(shape)
        self._third: Double = np.zeros(shape)
        self._square: Double = np.zeros(self.locations)
        self._quartic: Double = np.zeros(self.locations)
        self._scatter = self._zeros((*shape, self.channels))

    def _zeros(self, shape: tuple[int, int, int]) -> Double:
        if 8 * int(np.prod(shape, dtype=np.int64)) <= self._memory:
            return np.zeros(shape)
        return self._scratch.zeros(shape)

    def _ranges(self, images: int = 0) -> Iterator[tuple[int, int]]:
        """Locations in steps whose temporary arrays stay small."""
        row = 8 * self.channels * (3 * self.channels + 2 * images)
        step = max(_BLOCK_BYTES // row, 1)
        for start in range(0, self.locations, step):
            yield start, min(start + step, self.locations)
