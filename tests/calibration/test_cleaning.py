"""The cleaning of masks, against the runtime's own functions."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.calibration.cleaning import choose_cleaning
from unblemish.calibration.metrics import dice
from unblemish.runtime.decision import clean_mask, drop_weak, mask_of

FRAME = (300, 340)  # limits of a larger frame: all choices are open


def _scene(rng: np.random.Generator, *, specks: int, faint: bool):
    """A defect of 12 x 15 px on noise, with specks and a faint patch that are none."""
    truth = np.zeros((80, 70), np.bool_)
    truth[20:32, 30:45] = True
    score = rng.gamma(2, 0.02, truth.shape)
    score[truth] = rng.uniform(0.4, 0.9, truth.sum())
    for _ in range(specks):
        y, x = rng.integers(40, 78), rng.integers(2, 68)
        score[y : y + 2, x : x + 1] = 0.8
    if faint:
        score[60:75, 10:30] = 0.42
    return score.astype(np.float32), truth


def _mean_dice(images, cleaning) -> float:
    return float(np.mean([dice(cleaning.mask(score), truth) for score, truth in images]))


@pytest.mark.parametrize(("specks", "faint"), [(0, False), (30, False), (10, True)])
def test_choose_cleaning_reports_the_dice_of_its_masks(rng, specks, faint) -> None:
    images = [_scene(rng, specks=specks, faint=faint) for _ in range(6)]
    found = choose_cleaning(iter(images), 0.4, FRAME)
    assert np.mean(found.dices) == pytest.approx(_mean_dice(images, found), rel=1e-12)
    raw = np.mean([dice(score > 0.4, truth) for score, truth in images])
    assert np.mean(found.dices) >= raw - 0.002  # never worse than no cleaning, but for indifference


def test_choose_cleaning_drops_specks(rng) -> None:
    images = [_scene(rng, specks=30, faint=False) for _ in range(6)]
    found = choose_cleaning(images, 0.4, FRAME)
    assert found.min_area > 2 or found.open_radius > 0
    assert _mean_dice(images, found) > 0.98


def test_choose_cleaning_drops_large_faint_patches_by_their_peak(rng) -> None:
    images = [_scene(rng, specks=0, faint=True) for _ in range(6)]
    found = choose_cleaning(images, 0.3, FRAME)
    assert found.region_threshold > 0.42 or found.pixel_threshold > 0.42 - 1e-6
    assert _mean_dice(images, found) > 0.95


def test_choose_cleaning_prefers_the_cleaner_of_equals(rng) -> None:
    truth = np.zeros((60, 60), np.bool_)
    truth[10:40, 10:40] = True
    found = choose_cleaning([(truth.astype(np.float32), truth)] * 3, 0.5, FRAME)
    assert found.dices == (1.0, 1.0, 1.0)
    assert found.min_area == 61  # 0.06 % of the frame
    assert found.region_threshold > 0.5


def test_cleaning_mask_equals_the_mask_of_the_runtime(rng) -> None:
    from unblemish.bundle.manifest import Calibration

    score, truth = _scene(rng, specks=10, faint=True)
    found = choose_cleaning([(score, truth)], 0.4, FRAME)
    calibration = Calibration(
        pixel_threshold=found.pixel_threshold,
        image_threshold=1.0,
        open_radius=found.open_radius,
        min_area=found.min_area,
        region_threshold=found.region_threshold,
        false_reject_rate=0.01,
        normals=10,
        seed=0,
    )
    np.testing.assert_array_equal(found.mask(score), mask_of(score, calibration))


def test_drop_weak_keeps_whole_regions_that_are_clear_somewhere() -> None:
    score = np.zeros((6, 12), np.float32)
    score[1:4, 1:5] = 0.3
    score[2, 2] = 0.9
    score[1:4, 7:11] = 0.4
    mask = clean_mask(score > 0.2, 0, 0)
    kept = drop_weak(mask, score, 0.5)
    np.testing.assert_array_equal(kept[:, :6], mask[:, :6])
    assert not kept[:, 6:].any()
    assert drop_weak(mask, score, 0.0) is mask
    assert not drop_weak(mask, score, 0.95).any()
    assert not drop_weak(np.zeros_like(mask), score, 0.1).any()


def test_choose_cleaning_limits_itself_on_small_frames(rng) -> None:
    images = [_scene(rng, specks=30, faint=False) for _ in range(4)]
    found = choose_cleaning(images, 0.4, (80, 70))
    assert found.open_radius == 0
    assert found.min_area <= 6
