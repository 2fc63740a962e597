"""The geometry's resampling as small matrices: what the model sees of native pixels, and back.

A model image is A_h n A_w^T of the native image n, plane by plane. Only a window of the two is
ever made: the rows of a crop, and the native pixels that they see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.runtime.geometry import letterbox_box, scaled_size, tile_grid

Float = NDArray[np.float32]
Span = tuple[int, int]  # first index, and one behind the last

_CUBIC = -0.75  # OpenCV's coefficient of cubic convolution


@dataclass(frozen=True)
class Axis:
    """One axis of a model image: `source` native pixels, resized to `target`, read from `offset`.

    Model index i shows resized index clip(i + offset, 0, target - 1).
    """

    source: int
    target: int
    offset: int
    length: int

    @property
    def scale(self) -> float:
        """Model pixels per native pixel."""
        return self.target / self.source

    def matrix(self, model: Span, native: Span) -> Float:
        """A[i, j] = share of native pixel native[0] + j in model pixel model[0] + i."""
        rows = self._resized(np.arange(*model))
        index, weight = _area(self, rows) if self.target < self.source else _cubic(self, rows)
        inside = (index >= native[0]) & (index < native[1])
        out = np.zeros((len(rows), native[1] - native[0]))
        row = np.broadcast_to(np.arange(len(rows))[:, None], index.shape)
        np.add.at(out, (row[inside], index[inside] - native[0]), weight[inside])
        return out.astype(np.float32)

    def native_span(self, model: Span) -> Span:
        """The native pixels that these model pixels see."""
        rows = self._resized(np.array([model[0], model[1] - 1]))
        reach = 0.0 if self.target < self.source else 2.0
        first = int(np.floor(rows[0] / self.scale - reach))
        last = int(np.ceil((rows[1] + 1) / self.scale + reach))
        return max(first, 0), min(last, self.source)

    def model_span(self, native: Span) -> Span:
        """The model pixels that see these native pixels, within the model image."""
        reach = 0 if self.target < self.source else 2 * self.scale
        first = int(np.floor(native[0] * self.scale - reach)) - self.offset
        last = int(np.ceil(native[1] * self.scale + reach)) - self.offset
        # Padding repeats the resized image's edge as far as the model image goes.
        first = 0 if first <= -self.offset else first
        last = self.length if last >= self.target - self.offset else last
        return min(max(first, 0), self.length - 1), min(max(last, 1), self.length)

    def _resized(self, model: NDArray[np.intp]) -> NDArray[np.intp]:
        return np.clip(model + self.offset, 0, self.target - 1)


def axes(preprocess: Preprocess, frame_shape: tuple[int, ...], tile: int) -> tuple[Axis, Axis]:
    """Rows and columns of model image `tile` of a frame, as `Geometry.unit_to_model` makes it."""
    p, (height, width) = preprocess, frame_shape[:2]
    if p.geometry == "letterbox":
        top, left, h, w = letterbox_box(height, width, p)
        return Axis(height, h, -top, p.height), Axis(width, w, -left, p.width)
    if p.geometry == "tiles":
        h, w = scaled_size(height, width, p)
        rows, columns = tile_grid(height, width, p)
        r, c = divmod(tile, len(columns))
        return Axis(height, h, rows[r], p.height), Axis(width, w, columns[c], p.width)
    return Axis(height, p.height, 0, p.height), Axis(width, p.width, 0, p.width)


def _area(axis: Axis, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Overlap of every resized pixel with the native ones, as a share of the resized pixel."""
    step = axis.source / axis.target
    begin, end = rows * step, (rows + 1) * step
    taps = int(np.ceil(step)) + 1
    index = np.floor(begin).astype(np.intp)[:, None] + np.arange(taps)
    overlap = np.minimum(end[:, None], index + 1) - np.maximum(begin[:, None], index)
    overlap = np.where(index < axis.source, np.maximum(overlap, 0), 0)
    return np.minimum(index, axis.source - 1), overlap / overlap.sum(axis=1, keepdims=True)


def _cubic(axis: Axis, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Cubic convolution at pixel centres, the edge repeated; the identity where nothing grows."""
    place = (rows + 0.5) * axis.source / axis.target - 0.5
    first = np.floor(place).astype(np.intp)
    t = place - first
    far, near = _outer(t + 1), _inner(t)
    weight = np.stack([far, near, _inner(1 - t), 1 - far - near - _inner(1 - t)], axis=1)
    index = np.clip(first[:, None] + np.arange(-1, 3), 0, axis.source - 1)
    return index, weight


def _inner(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_CUBIC + 2) * t - (_CUBIC + 3)) * t * t + 1


def _outer(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_CUBIC * t - 5 * _CUBIC) * t + 8 * _CUBIC) * t - 4 * _CUBIC
