"""The way of frames to model images on the device, for searches whose engines are there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import BackendError
from unblemish.runtime.device.frames.model_images import OF_CAMERAS, FramesOnDevice
from unblemish.runtime.geometry import Float, Geometry

_LOG = logging.getLogger("unblemish")


@dataclass(frozen=True)
class DeviceGeometry(Geometry):
    """A `Geometry` that resamples frames of cameras on the device; other ways are the host's."""

    frames: FramesOnDevice

    def images_of(self, frame: NDArray[Any], unit: Float, white: float | None) -> Float:
        """See `Geometry`; it waits."""
        if frame.dtype not in OF_CAMERAS:
            return self.unit_to_model(unit)
        try:
            device, shape = self.frames.device, self.frames.shape([frame])
            out = device.scratch("model images", shape, np.float32)
            images: Float = device.to_host(self.frames([frame], whites=[white], out=out))
        except BackendError as error:
            _LOG.warning("a frame of %s is resampled on the host: %s", frame.shape, error)
            return self.unit_to_model(unit)
        return images
