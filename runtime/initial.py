"""The first guess of the normal image: a wide median, which small defects do not survive."""

from __future__ import annotations

import cv2
import numpy as np

from unblemish.runtime.solvers.protocol import Float

_SHARE = 21 / 224  # of the shorter side: wider than most defects, narrower than most parts
_LEVELS = 255


def wide_median(unit: Float) -> Float:
    """Median over a square window of every pixel.

    The frame is taken in 255 levels between its own darkest and brightest value, as the median of
    wide windows is only offered so.

    Args:
        unit: (H, W, C) float32 in [0, 1], C = 1 or 3.
    Returns: (H, W, C) float32.
    """
    low, high = float(unit.min()), float(unit.max())
    step = max(high - low, 1e-6) / _LEVELS
    levels = np.rint((unit - low) / step).astype(np.uint8)
    side = max(int(min(unit.shape[:2]) * _SHARE) // 2 * 2 + 1, 3)
    median = np.atleast_3d(cv2.medianBlur(levels, side)).astype(np.float32)
    return np.asarray(median * np.float32(step) + np.float32(low), np.float32)
