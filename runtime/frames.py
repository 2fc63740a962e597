"""Camera frames: what is accepted, and the way to unit intensities and back."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ConfigError, SourceError

Float = NDArray[np.float32]

_ACCEPTED = "a uint8, uint16 or float array of shape (H, W), (H, W, 1), (H, W, 3) or with alpha"


def to_unit(frame: Any, *, white: float | None = None) -> Float:
    """Check a frame and bring it to intensities in [0, 1], colours kept, alpha dropped.

    Args:
        frame: (H, W) or (H, W, C) with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha);
            uint8, uint16, or float16/32/64 in [0, 1].
        white: intensity of white, where it is not 255, 65535 or 1 (12 bits in uint16: 4095).
    Returns: (H, W, 1) or (H, W, 3) float32, C-contiguous, a copy.
    Raises: SourceError where the frame is no such array, empty, not finite, or out of range.
    """
    array = _checked_array(frame)
    level = white_level(array.dtype, white)
    planes = array[:, :, None] if array.ndim == 2 else array
    planes = planes[:, :, : 1 if planes.shape[2] < 3 else 3]
    unit: Float = np.ascontiguousarray(planes, dtype=np.float32)
    if unit is frame or level != 1.0 or unit.base is not None:
        unit = unit * np.float32(1.0 / level)
    _check_range(unit, array.dtype, level)
    return unit


def white_for(frame: Any, asked: float | None, stated: float | None) -> float | None:
    """White of a frame: what the caller asked for, else what the bundle states, else its dtype's.

    What the bundle states counts for integer frames that can hold it: a bundle of 12 bits in uint16
    says nothing of uint8, nor of floats, which are in [0, 1] unless the caller says otherwise.
    """
    if asked is not None or stated is None:
        return asked
    dtype = getattr(frame, "dtype", None)
    holds = dtype in (np.uint8, np.uint16) and stated <= np.iinfo(dtype).max
    return stated if holds else None


def to_channels(unit: Float, channels: int) -> Float:
    """Turn (H, W, 1 or 3) into (H, W, channels): grey is repeated, RGB becomes Rec. 601 luma."""
    if unit.shape[2] == channels:
        return unit
    if channels == 1:
        grey: Float = np.asarray(cv2.cvtColor(unit, cv2.COLOR_RGB2GRAY), np.float32)
        return grey[:, :, None]
    return np.repeat(unit, channels, axis=2)


def from_unit(unit: Float, dtype: np.dtype[Any], *, white: float | None = None) -> NDArray[Any]:
    """Turn unit intensities (H, W, C) into the dtype and range of a frame; (H, W) where C is 1.

    Values are clipped to [0, 1] and rounded to the nearest level; NaN becomes black.
    """
    level = white_level(np.dtype(dtype), white)
    clean = np.clip(np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    scaled = clean * np.float32(level)
    out = np.rint(scaled) if np.issubdtype(dtype, np.integer) else scaled
    planes: NDArray[Any] = out.astype(dtype)
    return planes[:, :, 0] if planes.shape[2] == 1 else planes


def _checked_array(frame: Any) -> NDArray[Any]:
    if not isinstance(frame, np.ndarray):
        raise SourceError(
            f"a frame must be {_ACCEPTED}; got {type(frame).__name__}. "
            "Convert it with numpy.asarray."
        )
    if frame.dtype.kind not in "uf" or frame.dtype not in _DTYPES:
        raise SourceError(
            f"a frame must be {_ACCEPTED}; got dtype {frame.dtype}. Convert it, e.g. to uint8."
        )
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and not 1 <= frame.shape[2] <= 4):
        raise SourceError(
            f"a frame must be {_ACCEPTED}; got shape {frame.shape}. "
            "Give one frame at a time, rows first and channels last."
        )
    if frame.size == 0:
        raise SourceError(f"the frame is empty (shape {frame.shape}). Check camera and crop.")
    return frame


_DTYPES = {np.dtype(t) for t in (np.uint8, np.uint16, np.float16, np.float32, np.float64)}


def white_level(dtype: np.dtype[Any], white: float | None) -> float:
    """Intensity of white: as stated, else of the dtype. Raises: ConfigError where it is not > 0."""
    if white is not None:
        if not (np.isfinite(white) and white > 0):
            raise ConfigError(
                f"white, the intensity of white, must be a positive number; got {white}."
            )
        return float(white)
    return {"uint8": 255.0, "uint16": 65535.0}.get(dtype.name, 1.0)


# Float frames come from arithmetic: forgive rounding and resampling overshoot, not another unit.
_SLACK = 0.01


def _check_range(unit: Float, dtype: np.dtype[Any], level: float) -> None:
    low, high = float(unit.min()), float(unit.max())  # NaN propagates through min
    if not (np.isfinite(low) and np.isfinite(high)):
        raise SourceError(
            "the frame holds NaN or infinite values. Repair it, e.g. with numpy.nan_to_num."
        )
    if low < -_SLACK or high > 1 + _SLACK:
        raise SourceError(
            f"intensities of a {dtype} frame must lie in [0, {level:g}]; "
            f"found [{low * level:g}, {high * level:g}]. Scale the frame, or state its white level."
        )
