"""The score of a refined frame: the residual in units of noise, where the detector sees something.

With p the detector's map relative to its peak, r = frame - restored image (of the sign that counts)
and s its robust spread over the frame,

    score = p (floor + min(max(r / s - onset, 0), 6)).

Neither factor outlines alone: the residual knows edges but also finds harmless ones, the map knows
where a defect is but not where it ends. The floor keeps what the detector sees and pixels do not
show, so that the outline falls back on the detector's own where nothing better is found.
"""

from __future__ import annotations

import cv2
import numpy as np

from unblemish.runtime.methods.refined import Refined
from unblemish.runtime.solvers.protocol import Float

_SIGMA = 0.7  # px: below, the residual of one pixel is mostly the sensor's noise
LARGEST = 6.0  # deviations beyond are certain, and contrast should not count any more
_MINOR = 0.25  # weight of the residual where the mask decides
LARGEST_REFINED = (1 + _MINOR) * LARGEST
_QUANTUM = 0.5 / 255  # half a step of an 8-bit camera
_GAUSSIAN = 1.4826  # standard deviation per median absolute deviation


def relative_map(plain: Float, normal: float | None) -> Float:
    """p: 0 at the frame's median, 1 at its peak, or at the peak that normal frames reach.

    Args:
        plain: (H, W) the detector's map. normal: largest value usual in normal frames, if known.
    """
    low = float(np.median(plain))
    high = max(float(plain.max()), normal or 0.0)
    return np.asarray(np.clip((plain - low) / max(high - low, 1e-12), 0, 1), np.float32)


def residual(unit: Float, restored: Float, polarity: str) -> Float:
    """r: root mean square over the channels of the differences that count, (H, W).

    Args:
        unit, restored: (H, W, C) in [0, 1]. polarity: see `score_of`.
    """
    difference = np.atleast_3d(cv2.GaussianBlur(unit, (0, 0), _SIGMA)) - restored
    if polarity == "dark":
        difference = np.minimum(difference, 0)
    elif polarity == "bright":
        difference = np.maximum(difference, 0)
    return np.asarray(np.sqrt(np.square(difference).mean(axis=2)), np.float32)


def noise_of(unit: Float, restored: Float) -> float:
    """s: what harmless pixels differ by, from the median over the frame."""
    difference = np.atleast_3d(cv2.GaussianBlur(unit, (0, 0), _SIGMA)) - restored
    return _GAUSSIAN * float(np.median(np.abs(difference))) + _QUANTUM


def outline_score(
    unit: Float, restored: Float, relative: Float, *, floor: float, onset: float, polarity: str
) -> Float:
    """Score map (H, W) float32, in [0, floor + 6]; see the module."""
    deviations = residual(unit, restored, polarity) / noise_of(unit, restored)
    return np.asarray(relative * (floor + np.clip(deviations - onset, 0, LARGEST)), np.float32)


def refined_score(
    unit: Float,
    median: Float,
    relative: Float,
    refined: Refined,
    *,
    floor: float,
    onset: float,
    polarity: str,
) -> Float:
    """As `outline_score`, but where a refinement is to be trusted its mask m decides:

        score = 6 sqrt(p) m + p (floor + min(max(r / s - onset, 0), 6) / 4).

    There p is at least what `Refined.strange` exceeds 1 by, so that a defect counts which only
    its colours show. The root lets the mask count where the detector's map has begun to fall.

    Args:
        median: the first guess of the normal image, from which r and s are taken.
    """
    deviations = residual(unit, median, polarity) / noise_of(unit, median)
    excess = np.clip(deviations - onset, 0, LARGEST)
    trusted = refined.free & ~refined.kept
    relative = np.where(trusted, np.maximum(relative, np.clip(refined.strange - 1, 0, 1)), relative)
    score = relative * (floor + np.where(trusted, _MINOR * excess, excess))
    score[trusted & refined.mask] += LARGEST * np.sqrt(relative[trusted & refined.mask])
    return np.asarray(score, np.float32)
