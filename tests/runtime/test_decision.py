"""Thresholds, cleaning and verdict on score maps whose answer is plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.bundle.manifest import Calibration, Preprocess
from unblemish.errors import ConfigError
from unblemish.runtime.decision import (
    clean_mask,
    decide,
    image_score,
    refine_warning,
    size_warning,
    smooth,
)
from unblemish.runtime.found import Found
from unblemish.runtime.inspection import Status
from unblemish.runtime.weighting import ScoreWeight


def found(score: np.ndarray[Any, Any], status: Status = Status.CONVERGED) -> Found:
    return Found(
        restored=np.zeros(score.shape, np.uint8),
        score=score.astype(np.float32),
        mask=np.zeros(score.shape, np.float32),
        z=np.zeros((1, 2), np.float32),
        status=status,
        steps=7,
        objective=0.5,
        trace=(1.0, 0.5),
        timings={"total": 1.0},
    )


def calibration(**fields: Any) -> Calibration:
    base = {"pixel_threshold": 0.2, "image_threshold": 0.4, "false_reject_rate": 0.01}
    return Calibration.model_validate({**base, "normals": 5, "seed": 0, **fields})


@pytest.fixture
def score() -> np.ndarray[Any, Any]:
    """A strong square of 4 x 4, a weak one of 2 x 2, and a single pixel."""
    score = np.zeros((20, 20))
    score[3:7, 4:8] = 0.5
    score[12:14, 12:14] = 0.3
    score[17, 3] = 0.3
    return score


def test_decide_thresholds_measures_and_judges(score: np.ndarray[Any, Any]) -> None:
    inspection = decide(found(score), calibration(), millimetres_per_pixel=2.0)
    np.testing.assert_array_equal(inspection.mask, score > 0.2)
    assert [r.area for r in inspection.regions] == [16, 4, 1]
    assert inspection.regions[0].area_mm2 == 64
    assert inspection.verdict == "fail"
    assert inspection.image_score == pytest.approx(0.5)
    assert (inspection.steps, inspection.status) == (7, Status.CONVERGED)
    assert inspection.trace == (1.0, 0.5)


def test_decide_passes_at_or_below_the_image_threshold(score: np.ndarray[Any, Any]) -> None:
    assert decide(found(score), calibration(image_threshold=0.5)).verdict == "pass"


def test_decide_never_passes_a_search_that_broke_down() -> None:
    broken = found(np.zeros((4, 4)), Status.NON_FINITE)
    assert decide(broken, calibration()).verdict == "fail"


def test_decide_drops_small_and_weak_regions(score: np.ndarray[Any, Any]) -> None:
    assert [r.area for r in decide(found(score), calibration(min_area=4)).regions] == [16, 4]
    weak = decide(found(score), calibration(region_threshold=0.4))
    assert [r.area for r in weak.regions] == [16]


def test_decide_weighs_the_score_before_all_else(score: np.ndarray[Any, Any]) -> None:
    preprocess = Preprocess(width=20, height=20, channels=1, low=0, high=1)
    weight = ScoreWeight(np.full((20, 20), 0.5, np.float32), preprocess)
    inspection = decide(found(score), calibration(), weight=weight)
    assert inspection.image_score == pytest.approx(0.25)
    assert [r.area for r in inspection.regions] == [16]


def test_decide_needs_a_calibration(score: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="unblemish calibrate"):
        decide(found(score), None)


def test_decide_leaves_what_was_found_alone(score: np.ndarray[Any, Any]) -> None:
    before = found(score)
    inspection = decide(before, calibration())
    inspection.score[:] = -1
    inspection.timings["x"] = 1
    np.testing.assert_array_equal(before.score, score.astype(np.float32))
    assert before.timings == {"total": 1.0}


def test_smooth_keeps_constants_and_total() -> None:
    np.testing.assert_allclose(smooth(np.full((9, 9), 0.3, np.float32), 2.0), 0.3, rtol=1e-5)
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    out = smooth(point, 1.5)
    assert out.sum() == pytest.approx(1, rel=1e-5)
    # The tail beyond 3 sigma is cut off and the rest scaled up: under 1 % at the centre.
    assert out[20, 20] == pytest.approx(1 / (2 * np.pi * 1.5**2), rel=0.02)


def test_clean_mask_opens_with_a_disc(score: np.ndarray[Any, Any]) -> None:
    mask = np.zeros((15, 15), np.bool_)
    mask[4:11, 4:11] = True
    mask[1, 1:14] = True  # a line thinner than the disc
    opened = clean_mask(mask, 1, 0)
    assert not opened[1].any()
    assert opened[5:10, 5:10].all()


def test_image_score_is_the_largest_score(score: np.ndarray[Any, Any]) -> None:
    assert image_score(score.astype(np.float32)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((100, 200), True), ((300, 400), True), ((81, 161), True), ((74, 200), False),
     ((1, 1), False), ((200, 600), False)],
)  # fmt: skip
def test_sizes_that_calibration_has_not_seen_are_named(shape: tuple[int, int], fits: bool) -> None:
    seen = calibration(frame_sizes=((100, 200), (300, 400)))
    text = size_warning(shape, seen)
    assert (text is None) is fits
    if text is not None:
        assert f"{shape[1]} x {shape[0]} px, but calibration saw 200 x 100 to 400 x 300 px" in text
    assert size_warning(shape, calibration()) is None


def test_refine_warning_names_both_searches() -> None:
    text = refine_warning("none", calibration(refine="rgi"))
    assert text is not None
    assert "'rgi'" in text
    assert "'none'" in text
    assert refine_warning("rgi", calibration(refine="rgi")) is None
    assert refine_warning("rgi", calibration()) is None
