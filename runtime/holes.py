"""A frame with a hole on its way through a search, and back with the hole filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ShapeError
from unblemish.runtime.frames import from_unit, to_channels, to_unit, white_for
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.membrane import extend
from unblemish.runtime.solvers.protocol import Bool, Float


@dataclass(frozen=True)
class Holed:
    """A frame and its hole, as given and as the model sees them.

    Args:
        hole: (H, W). unit: (H, W, 1 or 3) in [0, 1], as the frame is outside of the hole.
        images: (T, C, h, w), model images of `unit`. free: (T, 1, h, w), pixels that see the hole.
        white: of the frame.
    """

    frame: NDArray[Any]
    hole: Bool
    unit: Float
    images: Float
    free: Bool
    white: float | None

    def filled(self, images: Float, geometry: Geometry) -> NDArray[Any]:
        """The frame with what model images show of the hole; all else is as it was, bit by bit.

        Where the images differ from the frame around the hole, the difference is carried into it:
        a grey model so gives shape, and the frame colour.
        Returns: as the frame.
        """
        native = geometry.to_unit_range(geometry.to_native(images, self.unit.shape))
        channels = self.unit.shape[2]
        made = native if channels == native.shape[2] else to_channels(native, channels)
        return self.with_unit(made + carried(self.unit - made, self.hole))

    def with_unit(self, unit: Float) -> NDArray[Any]:
        """A copy of the frame with the hole as in `unit`, (H, W, 1 or 3)."""
        out = np.array(self.frame)
        planes = out[:, :, None] if out.ndim == 2 else out
        made = from_unit(unit, out.dtype, white=self.white)
        made = made[:, :, None] if made.ndim == 2 else made
        planes[self.hole, : made.shape[2]] = made[self.hole]
        return out


def open_hole(
    frame: Any,
    mask: NDArray[Any],
    geometry: Geometry,
    white: float | None = None,
    *,
    smooth: bool = True,
) -> Holed:
    """Bring a frame and the mask of its hole to the model.

    Args:
        mask: (H, W), bool, or numbers of which all but 0 are the hole.
        white: see `prepare_job`.
        smooth: begin with a smooth surface in the hole; else with what the frame shows there.
    Raises: SourceError where the frame is not usable; ShapeError where the mask does not fit.
    """
    preprocess = geometry.preprocess
    chosen = white_for(frame, white, preprocess.white)
    unit = to_unit(frame, white=chosen)
    hole = checked_mask(mask, unit.shape)
    if smooth:
        unit = carried(unit, hole)
    seen = to_channels(hole[:, :, None].astype(np.float32), preprocess.channels)
    free = geometry.to_unit_range(geometry.unit_to_model(seen))[:, :1] > _SEES
    return Holed(frame, hole, unit, geometry.unit_to_model(unit), free, chosen)


_SEES = 1e-3  # share of the hole in a model pixel


def checked_mask(mask: NDArray[Any], shape: tuple[int, ...]) -> Bool:
    """The mask as bool. Raises: ShapeError where it has not the (H, W) of the shape."""
    hole = np.asarray(mask)
    if hole.shape != shape[:2]:
        raise ShapeError(
            f"the mask must have the frame's size {shape[:2]}; it has {hole.shape}. "
            "Give one value for every pixel of the frame."
        )
    return np.asarray(hole != 0)


def carried(unit: Float, hole: Bool) -> Float:
    """(H, W, C) with the hole as the smoothest surface from its rim, see `extend`."""
    planes = np.ascontiguousarray(unit.transpose(2, 0, 1))
    return np.ascontiguousarray(extend(planes, hole).transpose(1, 2, 0))
