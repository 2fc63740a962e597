"""Model images of whatever frames come, made on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.errors import ShapeError
from unblemish.kernels.cuda.device import Device
from unblemish.kernels.device_array import DeviceArray
from unblemish.runtime.device.frames import DeviceFrames
from unblemish.runtime.geometry import Geometry

_KINDS = 4  # of frames, by size, dtype and white, whose memory is kept
OF_CAMERAS = (np.dtype(np.uint8), np.dtype(np.uint16))


class FramesOnDevice:
    """Frames, each of any size and dtype, to model images one behind the other.

    >>> take = FramesOnDevice(bundle.manifest.preprocess, kernels.device)  # doctest: +SKIP
    >>> images = take([frame])                                             # doctest: +SKIP

    uint8 and uint16 go up as they are and are resampled there; floats, which have to be looked at,
    are resampled on the host. Memory for the last few kinds of frames is kept.
    """

    def __init__(self, preprocess: Preprocess, device: Device) -> None:
        self.device = device
        self._geometry = Geometry(preprocess)
        self._kinds: dict[tuple[Any, ...], DeviceFrames] = {}

    def shape(self, frames: Sequence[NDArray[Any]]) -> tuple[int, int, int, int]:
        """(tiles of all frames, C, h, w)."""
        p = self._geometry.preprocess
        tiles = sum(self._geometry.tiles(frame.shape) for frame in frames)
        return tiles, p.channels, p.height, p.width

    def __call__(
        self,
        frames: Sequence[NDArray[Any]],
        *,
        whites: Sequence[float | None] | None = None,
        out: DeviceArray | None = None,
    ) -> DeviceArray:
        """Put the way of some frames on the stream; it waits for none of it.

        Args:
            frames: as for `to_unit`; they may be changed when this returns.
            whites: intensity of white of each frame, None for its dtype's. Levels above it are not
                refused, see `DeviceFrames`.
            out: `shape(frames)` float32, e.g. what a search reads; None for memory of its own.
        Returns: `out`, in [low, high], tiles as `Geometry.to_model` makes them.
        Raises: SourceError where a frame is not usable; ShapeError where `out` does not fit.
        """
        shape = self.shape(frames)
        images = self.device.empty(shape) if out is None else out
        if images.shape != shape or images.dtype != np.float32:
            raise ShapeError(
                f"the images of these frames are {shape} float32; out is {images.dtype} of "
                f"{images.shape}."
            )
        first = 0
        for frame, white in zip(frames, whites or [None] * len(frames), strict=True):
            count = self._geometry.tiles(frame.shape)
            self._put(frame, white, _rows(images, first, count))
            first += count
        return images

    def _put(self, frame: NDArray[Any], white: float | None, images: DeviceArray) -> None:
        if frame.dtype in OF_CAMERAS:
            self._kind(frame, white).enqueue([frame], images)
        else:
            self.device.upload(images, self._geometry.to_model(frame, white=white))

    def _kind(self, frame: NDArray[Any], white: float | None) -> DeviceFrames:
        """Memory and filters for such frames; of too many kinds that used longest ago goes."""
        key = frame.shape, frame.dtype, white
        kind = self._kinds.pop(key, None)
        if kind is None:
            if len(self._kinds) >= _KINDS:
                self.device.driver.synchronise()  # it may still be read
                self._kinds.pop(next(iter(self._kinds)))
            preprocess = self._geometry.preprocess
            kind = DeviceFrames(self.device, preprocess, frame.shape, frame.dtype, white=white)
        self._kinds[key] = kind
        return kind


def _rows(images: DeviceArray, first: int, count: int) -> DeviceArray:
    begin = images.pointer + first * (images.nbytes // images.shape[0])
    shape = (count, *images.shape[1:])
    return replace(images, pointer=begin, shape=shape, strides=(), owner=images)
