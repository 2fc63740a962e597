"""What verdicts go by: where the map tells defects apart and the detector does not, the map."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.bundle.manifest import Calibration
from unblemish.calibration.verdict import Judge, choose_judge, peaks
from unblemish.runtime.decision import decide
from unblemish.runtime.found import Found
from unblemish.runtime.inspection import Status

RATE = 0.05
NORMAL = np.linspace(1.0, 2.0, 40)
BLIND = Judge(NORMAL, np.linspace(1.1, 2.1, 16))  # defects score as normals do
CLEAR = Judge(NORMAL, np.linspace(4.0, 6.0, 16))


def test_the_evidence_is_kept_unless_the_map_is_clearly_better() -> None:
    clear_map, blind_map = Judge(NORMAL, CLEAR.defects, 1.0), Judge(NORMAL, BLIND.defects, 1.0)
    assert choose_judge([blind_map, clear_map], BLIND, RATE) is clear_map
    assert choose_judge([clear_map], CLEAR, RATE) is CLEAR
    assert choose_judge([blind_map], CLEAR, RATE) is CLEAR


def test_without_evidence_the_first_of_the_best_maps_is_chosen() -> None:
    first, second = Judge(NORMAL, CLEAR.defects, 0.0), Judge(NORMAL, CLEAR.defects, 2.0)
    assert choose_judge([Judge(NORMAL, BLIND.defects, 0.7), first, second], None, RATE) is first


def test_merit_adds_what_is_caught_to_the_auroc() -> None:
    assert CLEAR.merit(RATE) == pytest.approx(2.0)
    assert Judge(NORMAL, NORMAL).merit(RATE) == pytest.approx(0.5, abs=0.1)


def test_peaks_fall_with_smoothing() -> None:
    score = np.zeros((20, 20), np.float32)
    score[10, 10] = 3
    plain, smoothed = peaks(score, (0.0, 2.0))
    assert plain == 3
    assert 0 < smoothed < 0.2


@pytest.mark.parametrize(("by_evidence", "verdict"), [(True, "pass"), (False, "fail")])
def test_the_inspector_decides_by_what_was_chosen(by_evidence: bool, verdict: str) -> None:
    score = np.zeros((8, 8), np.float32)
    score[2, 2] = 5
    found = Found(score, score, score, score[:1, :0], Status.CONVERGED, 1, 0.0, evidence=1.0)
    calibration = Calibration(
        pixel_threshold=2.0,
        image_threshold=3.0,
        false_reject_rate=0.01,
        normals=40,
        synthetic=16,
        seed=0,
        by_evidence=by_evidence,
    )
    inspection = decide(found, calibration)
    assert inspection.verdict == verdict
    assert inspection.image_score == (1.0 if by_evidence else 5.0)
