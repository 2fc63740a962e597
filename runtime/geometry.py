"""From a camera frame to images of the model's size and back: stretch, letterbox or tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.errors import ShapeError
from unblemish.runtime.frames import to_channels, to_unit

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """Frames to model images and back, by the settings of a bundle.

    >>> geometry = Geometry(Preprocess(width=64, height=64, channels=1, low=0, high=1))
    >>> geometry.to_model(np.zeros((100, 80), np.uint8)).shape
    (1, 1, 64, 64)
    """

    preprocess: Preprocess

    def to_model(self, frame: Any, *, white: float | None = None) -> Float:
        """Turn a frame into the model's inputs.

        Returns: (tiles, C, h, w) float32 in [low, high]; one tile unless the geometry is 'tiles'.
        Raises: SourceError where the frame is not usable (see `to_unit`).
        """
        return self.unit_to_model(to_unit(frame, white=white))

    def unit_to_model(self, unit: Float) -> Float:
        """As `to_model`, for a frame already brought to (H, W, C) in [0, 1] by `to_unit`."""
        image = to_channels(unit, self.preprocess.channels)
        tiles = _FORWARD[self.preprocess.geometry](image, self.preprocess)
        stacked = np.stack([tile.transpose(2, 0, 1) for tile in tiles])
        return np.ascontiguousarray(self.to_intensity(stacked))

    def images_of(self, frame: NDArray[Any], unit: Float, white: float | None) -> Float:
        """As `to_model`, of a frame and what `to_unit` made of it; either may be read."""
        return self.unit_to_model(unit)

    def to_native(self, images: Float, frame_shape: tuple[int, ...]) -> Float:
        """Bring model images (or maps) back to the frame's geometry, in their own unit.

        Args:
            images: (tiles, C, h, w) with any C, tiles as `to_model` made them.
            frame_shape: (H, W, ...) of the frame.
        Returns: (H, W, C) float32. Tiles are blended by raised-cosine windows that sum to one.
        Raises: ShapeError where the number or the size of the tiles is not that of such a frame.
        """
        height, width = frame_shape[:2]
        p = self.preprocess
        expected = (self.tiles(frame_shape), p.height, p.width)
        if images.ndim != 4 or (images.shape[0], *images.shape[2:]) != expected:
            raise ShapeError(
                f"expected (tiles, C, h, w) with tiles, h, w = {expected} "
                f"for a {width}x{height} frame; got {images.shape}."
            )
        planes = np.ascontiguousarray(images.transpose(0, 2, 3, 1), dtype=np.float32)
        return _BACKWARD[p.geometry](planes, p, (height, width))

    def tiles(self, frame_shape: tuple[int, ...]) -> int:
        """Number of model images that a frame of this shape becomes."""
        if self.preprocess.geometry != "tiles":
            return 1
        rows, columns = tile_grid(frame_shape[0], frame_shape[1], self.preprocess)
        return len(rows) * len(columns)

    def to_intensity(self, unit: Float) -> Float:
        """From [0, 1] to the model's [low, high]."""
        low, high = self.preprocess.low, self.preprocess.high
        return (unit * np.float32(high - low) + np.float32(low)).astype(np.float32, copy=False)

    def to_unit_range(self, image: Float) -> Float:
        """From the model's [low, high] to [0, 1], unclipped."""
        low, high = self.preprocess.low, self.preprocess.high
        return ((image - np.float32(low)) * np.float32(1.0 / (high - low))).astype(
            np.float32, copy=False
        )


def resize(image: Float, height: int, width: int) -> Float:
    """Resample (H, W, C): area average where an axis shrinks, cubic where it grows.

    Cubic overshoot is clipped to the range of the source.
    """
    h, w = image.shape[:2]
    out = _resize_axis(image, h, width, shrinking=width < w)
    return _resize_axis(out, height, width, shrinking=height < h)


def _resize_axis(image: Float, height: int, width: int, *, shrinking: bool) -> Float:
    if image.shape[:2] == (height, width):
        return image
    method = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    resized = cv2.resize(image, (width, height), interpolation=method)
    out: Float = np.asarray(resized, np.float32).reshape(height, width, image.shape[2])
    return out if shrinking else np.clip(out, image.min(), image.max())


def _stretch(image: Float, p: Preprocess) -> list[Float]:
    return [resize(image, p.height, p.width)]


def _unstretch(tiles: Float, p: Preprocess, shape: tuple[int, int]) -> Float:
    return resize(tiles[0], *shape)


def letterbox_box(height: int, width: int, p: Preprocess) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the frame's picture inside the model image."""
    factor = min(p.height / height, p.width / width)
    h = min(max(round(height * factor), 1), p.height)
    w = min(max(round(width * factor), 1), p.width)
    return (p.height - h) // 2, (p.width - w) // 2, h, w


def _letterbox(image: Float, p: Preprocess) -> list[Float]:
    top, left, h, w = letterbox_box(image.shape[0], image.shape[1], p)
    return [_pad(resize(image, h, w), top, p.height - h - top, left, p.width - w - left)]


def _unletterbox(tiles: Float, p: Preprocess, shape: tuple[int, int]) -> Float:
    top, left, h, w = letterbox_box(*shape, p)
    return resize(np.ascontiguousarray(tiles[0, top : top + h, left : left + w]), *shape)


def _pad(image: Float, top: int, bottom: int, left: int, right: int) -> Float:
    return np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge")


def scaled_size(height: int, width: int, p: Preprocess) -> tuple[int, int]:
    """(height, width) of the frame brought to the scale of its tiles."""
    return max(round(height * p.scale), 1), max(round(width * p.scale), 1)


def _positions(length: int, tile: int, overlap: float) -> list[int]:
    """Evenly spread starts of tiles that cover `length`, overlapping by at least that share."""
    if length <= tile:
        return [0]
    stride = max(tile * (1 - overlap), 1)
    count = int(np.ceil((length - tile) / stride)) + 1
    return [int(start) for start in np.rint(np.linspace(0, length - tile, count))]


def tile_grid(height: int, width: int, p: Preprocess) -> tuple[list[int], list[int]]:
    """First row of every row of tiles, first column of every column, in the scaled frame."""
    h, w = scaled_size(height, width, p)
    return _positions(h, p.height, p.overlap), _positions(w, p.width, p.overlap)


def _cut(image: Float, p: Preprocess) -> list[Float]:
    rows, columns = tile_grid(image.shape[0], image.shape[1], p)
    h, w = scaled_size(image.shape[0], image.shape[1], p)
    scaled = _pad(resize(image, h, w), 0, max(p.height - h, 0), 0, max(p.width - w, 0))
    return [scaled[r : r + p.height, c : c + p.width] for r in rows for c in columns]


def _weights(starts: list[int], tile: int, length: int) -> Float:
    """Window of every tile along one axis, (tiles, length); the columns sum to one.

    w_i(p) = sin^2(pi (p - start_i + 1/2) / tile), divided by the sum over i. The product of two
    axes is then a partition of unity in the plane.
    """
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    weights = np.zeros((len(starts), length))
    for row, start in zip(weights, starts, strict=True):
        row[start : start + tile] = window
    normalised: Float = (weights / weights.sum(axis=0)).astype(np.float32)
    return normalised


def _join(tiles: Float, p: Preprocess, shape: tuple[int, int]) -> Float:
    rows, columns = tile_grid(*shape, p)
    h, w = scaled_size(*shape, p)
    extent = max(h, p.height), max(w, p.width)
    down, across = _weights(rows, p.height, extent[0]), _weights(columns, p.width, extent[1])
    canvas = np.zeros((*extent, tiles.shape[3]), np.float32)
    for index, tile in enumerate(tiles):
        r, c = divmod(index, len(columns))
        top, left = rows[r], columns[c]
        weight = np.outer(down[r, top : top + p.height], across[c, left : left + p.width])
        canvas[top : top + p.height, left : left + p.width] += weight[:, :, None] * tile
    return resize(np.ascontiguousarray(canvas[:h, :w]), *shape)


_FORWARD: dict[str, Callable[[Float, Preprocess], list[Float]]] = {
    "stretch": _stretch,
    "letterbox": _letterbox,
    "tiles": _cut,
}
_BACKWARD: dict[str, Callable[[Float, Preprocess, tuple[int, int]], Float]] = {
    "stretch": _unstretch,
    "letterbox": _unletterbox,
    "tiles": _join,
}
