"""From a raw score map to mask, regions and verdict."""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Calibration
from unblemish.errors import ConfigError
from unblemish.runtime.found import Found
from unblemish.runtime.inspection import Inspection, Status
from unblemish.runtime.regions import measure_regions
from unblemish.runtime.weighting import ScoreWeight

Score = NDArray[np.float32]
Mask = NDArray[np.bool_]


def decide(
    found: Found,
    calibration: Calibration | None,
    *,
    millimetres_per_pixel: float | None = None,
    weight: ScoreWeight | None = None,
) -> Inspection:
    """Apply the thresholds of a calibration to what a search found.

    `weight` is that of the bundle, where its calibration has one (see `load_weight`).
    A part whose search broke down (`Status.NON_FINITE`) never passes.

    Raises: ConfigError where there is no calibration.
    """
    calibration = require_calibration(calibration)
    weighted = found.score if weight is None else weight(found.score)
    score = smooth(weighted, calibration.smoothing_sigma)
    mask = mask_of(score, calibration)
    regions = measure_regions(mask, score, millimetres_per_pixel=millimetres_per_pixel)
    total = (
        found.evidence
        if found.evidence is not None and calibration.by_evidence
        else image_score(_for_verdict(weighted, score, calibration))
    )
    verdict: Literal["pass", "fail"] = (
        "fail"
        if total > calibration.image_threshold or found.status is Status.NON_FINITE
        else "pass"
    )
    return Inspection(
        mask=mask,
        score=score,
        restored=found.restored,
        regions=regions,
        verdict=verdict,
        image_score=total,
        status=found.status,
        steps=found.steps,
        objective=found.objective,
        timings=dict(found.timings),
        trace=found.trace,
        latent=found.z,
        kept_plain=found.kept_plain,
    )


def require_calibration(calibration: Calibration | None) -> Calibration:
    """The calibration, or ConfigError saying how to get one."""
    if calibration is None:
        raise ConfigError(
            "the bundle is not calibrated, so there is no threshold to decide by. Run: "
            "unblemish calibrate BUNDLE --normals DIR. (Inspector.search works without.)"
        )
    return calibration


# Within a quarter, smoothing and smallest area are as right as their choice was.
_SIZE_SLACK = 1.25


def size_warning(shape: tuple[int, ...], calibration: Calibration) -> str | None:
    """Why thresholds may not hold for a frame of this (H, W); None where its size is known."""
    if calibration.frame_sizes is None:
        return None
    least, largest = calibration.frame_sizes
    sides = zip(shape[:2], least, largest, strict=True)
    if all(low / _SIZE_SLACK <= side <= high * _SIZE_SLACK for side, low, high in sides):
        return None
    seen = " to ".join(dict.fromkeys(f"{w} x {h}" for h, w in (least, largest)))
    return (
        f"a frame of {shape[1]} x {shape[0]} px, but calibration saw {seen} px: smoothing, "
        "cleaning and thresholds count native pixels and may not hold. Calibrate with frames of "
        "this size."
    )


def refine_warning(refine: str, calibration: Calibration) -> str | None:
    """Why thresholds may not hold for this search; None where they were calibrated for it."""
    if calibration.refine in (None, refine):
        return None
    return (
        f"the thresholds were calibrated for refine='{calibration.refine}'; with "
        f"refine='{refine}' masks and verdicts may not keep the stated false-reject rate."
    )


def smooth(score: Score, sigma: float) -> Score:
    """Gaussian of `sigma` native pixels, mirrored at the border; a copy, always."""
    if sigma <= 0:
        return score.copy()
    side = 2 * math.ceil(3 * sigma) + 1
    out = cv2.GaussianBlur(score, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(out, np.float32)


def _for_verdict(weighted: Score, smoothed: Score, calibration: Calibration) -> Score:
    """The map whose peak decides: outlines want little smoothing, verdicts often more."""
    sigma = calibration.image_sigma
    if sigma is None or sigma == calibration.smoothing_sigma:
        return smoothed
    return smooth(weighted, sigma)


def mask_of(score: Score, calibration: Calibration) -> Mask:
    """Threshold and clean a smoothed score map."""
    raw = score > calibration.pixel_threshold
    mask = clean_mask(raw, calibration.open_radius, calibration.min_area)
    return drop_weak(mask, score, calibration.region_threshold)


def clean_mask(mask: Mask, open_radius: int, min_area: int) -> Mask:
    """Open with a disc of `open_radius` pixels, then drop regions of fewer than `min_area`."""
    out = mask.astype(np.uint8)
    if open_radius > 0:
        out = cv2.morphologyEx(out, cv2.MORPH_OPEN, _disc(open_radius)).astype(np.uint8)
    if min_area > 1:
        _, labels, stats, _ = cv2.connectedComponentsWithStats(out, connectivity=8)
        large = stats[:, cv2.CC_STAT_AREA] >= min_area
        large[0] = False
        return np.asarray(large[labels], np.bool_)
    return out.astype(np.bool_)


def drop_weak(mask: Mask, score: Score, threshold: float) -> Mask:
    """Keep the 8-connected regions whose largest score is above `threshold`; 0 keeps them all.

    Together with the pixel threshold this is thresholding with hysteresis: a region must be clear
    somewhere, and then counts to its edge.
    """
    if threshold <= 0:
        return mask
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    peaks = np.zeros(count, np.float32)
    np.maximum.at(peaks, np.asarray(labels[mask], np.int64), score[mask])
    return np.asarray((peaks > np.float32(threshold))[labels], np.bool_)


def image_score(score: Score) -> float:
    """The largest value of the (smoothed) score map: one defect is enough."""
    return float(score.max())


def _disc(radius: int) -> NDArray[np.uint8]:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(x * x + y * y <= radius * radius, np.uint8)
