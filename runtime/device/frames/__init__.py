"""Camera frames to model images on the device: the work of `Geometry.to_model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.errors import SourceError
from unblemish.kernels.cuda.device import Device
from unblemish.kernels.cuda.driver import Event
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.frames.filters import Filter, axis_filter
from unblemish.runtime.frames import white_level
from unblemish.runtime.geometry import letterbox_box, scaled_size, tile_grid

_KERNELS = {np.dtype(np.uint8): "planes_of_bytes", np.dtype(np.uint16): "planes_of_words"}


@dataclass
class _Stage:
    """Pinned memory for the frames of a call, and when the device had read it."""

    memory: NDArray[Any]
    read: Event | None = None


class DeviceFrames:
    """Frames of one shape and dtype to the model's inputs, for one number of frames at a time.

    The frames are copied to pinned memory, of which there are two pieces, so that the next frames
    are taken while the last ones are on their way. Nothing waits but for that.

    Args:
        shape: (H, W) or (H, W, C) of a frame, C = 1 to 4. dtype: uint8 or uint16, what cameras
            give; floats, which must be checked first, are for `Geometry`.
        white: intensity of white; None for the largest of the dtype. Levels above it are not
            refused, as `Geometry` does: to look would be to wait.
    Raises: SourceError for another dtype or shape.
    """

    def __init__(
        self,
        device: Device,
        preprocess: Preprocess,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        frames: int = 1,
        white: float | None = None,
    ) -> None:
        self._device, self._p, self.frames = device, preprocess, frames
        self.shape, self.dtype = shape, np.dtype(dtype)
        if (
            self.dtype not in _KERNELS
            or len(shape) not in (2, 3)
            or (*shape, 1)[2] not in range(1, 5)
        ):
            raise SourceError(
                "frames on the device must be uint8 or uint16 of shape (H, W) or (H, W, C) with 1 "
                f"to 4 channels; got {self.dtype} of {shape}. Convert them, or use the CPU."
            )
        self._inverse = float(np.float32(1.0 / white_level(self.dtype, white)))
        self._stages = [_Stage(device.pinned((frames, *shape), self.dtype)) for _ in range(2)]
        self._frames = device.empty((frames, *shape), self.dtype)
        self._planes = device.empty((frames, preprocess.channels, *shape[:2]))
        self._plan()

    def _plan(self) -> None:
        """Filters, corners and memory of everything between frame and tiles."""
        height, width = self.shape[:2]
        (h, w), corners = resized(height, width, self._p)
        device, channels = self._device, self._p.channels
        self._filters = [
            (axis, _Placed.on(device, found))
            for axis, found in ((1, axis_filter(width, w)), (0, axis_filter(height, h)))
            if found is not None
        ]
        self._between = [
            device.empty((self.frames, channels, *size)) for size in ((height, w), (h, w))
        ]
        self._extent = device.empty((self.frames, 2))
        self._corners = device.to_device(np.array(corners, np.int32))
        tiles = self.frames * len(corners)
        self.images = device.empty((tiles, channels, self._p.height, self._p.width))

    def enqueue(
        self, frames: Sequence[NDArray[Any]], out: DeviceArray | None = None
    ) -> DeviceArray:
        """Put the way of some frames on the stream.

        Args:
            frames: `self.frames` of them; they may be changed when this returns.
            out: (frames * tiles, C, h, w) float32, e.g. an engine's input; None for memory of our
                own, which the next call overwrites.
        Raises: SourceError for other frames than announced.
        """
        images = self.images if out is None else out
        self._upload(frames)
        self._device.launch(
            _KERNELS[self.dtype], self._rows(self._planes), frames=self._frames, out=self._planes,
            inverse_white=self._inverse, batch=self.frames, to=self._p.channels,
            plane=self._planes.shape[2] * self._planes.shape[3], **{"from": (*self.shape, 1)[2]},
        )  # fmt: skip
        image = self._planes
        for axis, placed in self._filters:
            image = self._resample(image, axis, placed)
        self._cut(image, images)
        return images

    def _upload(self, frames: Sequence[NDArray[Any]]) -> None:
        if len(frames) != self.frames:
            raise SourceError(f"{self.frames} frames were announced, found {len(frames)}.")
        stage = self._stages[0]
        self._stages.reverse()
        if stage.read is not None:
            stage.read.wait()
        for room, frame in zip(stage.memory, frames, strict=True):
            if frame.shape != self.shape or frame.dtype != self.dtype:
                raise SourceError(
                    f"frames of {self.shape} and {self.dtype} were announced, found {frame.shape} "
                    f"and {frame.dtype}."
                )
            room[...] = frame
        self._device.driver.upload(self._frames.pointer, stage.memory)
        stage.read = self._device.driver.record()

    def _resample(self, image: DeviceArray, axis: int, placed: _Placed) -> DeviceArray:
        _, channels, height, width = image.shape
        out = self._between[0] if axis == 1 else self._between[1]
        sizes = {"outer": channels * height, "before": width, "inner": 1}
        if axis == 0:
            sizes = {"outer": channels, "before": height, "inner": width}
        self._device.launch(
            "resample", self._rows(out), x=image, start=placed.start, weights=placed.weights,
            taps=placed.weights.shape[1], extent=self._extent_of(image) if placed.clips else None,
            out=out, batch=self.frames, after=out.shape[2 + axis], **sizes,
        )  # fmt: skip
        return out

    def _extent_of(self, image: DeviceArray) -> DeviceArray:
        """Least and largest intensity of every frame: what cubic overshoot is clipped to."""
        device, length = self._device, image.size // self.frames
        grid = device.rows(self.frames, length, 1)
        shape = (self.frames, grid[0])
        least = device.scratch("least", shape, np.float64)
        most = device.scratch("most", shape, np.float64)
        device.launch(
            "extent", grid, x=image, least=least, most=most, batch=self.frames, length=length
        )
        device.launch(
            "finish_extent", (self.frames, 1), least=least, most=most, extent=self._extent,
            blocks=grid[0],
        )  # fmt: skip
        return self._extent

    def _cut(self, image: DeviceArray, out: DeviceArray) -> None:
        _, channels, height, width = image.shape
        p = self._p
        self._device.launch(
            "cut_tiles", self._device.rows(self.frames, out.size // self.frames, 1), x=image,
            corners=self._corners, span=p.high - p.low, low=p.low, out=out, batch=self.frames,
            tiles=self._corners.shape[0], channels=channels, height=height, width=width,
            rows=p.height, columns=p.width,
        )  # fmt: skip

    def _rows(self, array: DeviceArray) -> tuple[int, int]:
        return self._device.rows(self.frames, array.size // self.frames, 1)


@dataclass(frozen=True)
class _Placed:
    """A filter on the device."""

    start: DeviceArray
    weights: DeviceArray
    clips: bool

    @staticmethod
    def on(device: Device, found: Filter) -> _Placed:
        return _Placed(device.to_device(found.start), device.to_device(found.weights), found.clips)


def resized(
    height: int, width: int, p: Preprocess
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Size to which a frame is resampled, and (top, left) of every model image in it."""
    if p.geometry == "letterbox":
        top, left, h, w = letterbox_box(height, width, p)
        return (h, w), [(-top, -left)]
    if p.geometry == "tiles":
        rows, columns = tile_grid(height, width, p)
        return scaled_size(height, width, p), [(r, c) for r in rows for c in columns]
    return (p.height, p.width), [(0, 0)]
