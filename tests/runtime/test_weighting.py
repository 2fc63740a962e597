"""Per-pixel weights of the score."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.bundle import update_bundle
from unblemish.bundle.manifest import Preprocess
from unblemish.errors import BundleError, ShapeError
from unblemish.runtime.weighting import (
    Level,
    ScoreWeight,
    encode_weight,
    frame_level,
    load_weight,
    weight_of,
)


def _preprocess(geometry: str = "stretch") -> Preprocess:
    return Preprocess.model_validate(
        {"width": 24, "height": 16, "channels": 3, "low": -1.0, "high": 1.0, "geometry": geometry}
    )


def test_weight_of_is_one_at_the_mean_and_at_most_five(rng) -> None:
    spread = rng.gamma(2, 0.1, (16, 24)).astype(np.float32)
    mean = float(spread.mean())
    np.testing.assert_allclose(weight_of(spread), 1.25 * mean / (spread + 0.25 * mean), rtol=1e-6)
    zero = weight_of(np.array([[0.0, 2.0]], np.float32))
    np.testing.assert_allclose(zero, [[5.0, 1.25 / 2.25]], rtol=1e-6)


def test_weight_of_no_spread_is_one() -> None:
    np.testing.assert_array_equal(weight_of(np.zeros((3, 4), np.float32)), 1.0)


@pytest.mark.parametrize("geometry", ["stretch", "letterbox"])
def test_score_weight_of_ones_changes_nothing(geometry, rng) -> None:
    weight = ScoreWeight(np.ones((16, 24), np.float32), _preprocess(geometry))
    for shape in ((40, 50), (16, 24), (7, 90)):
        score = rng.random(shape).astype(np.float32)
        np.testing.assert_allclose(weight(score), score, rtol=1e-5)


def test_score_weight_lies_where_the_model_saw_it() -> None:
    values = np.ones((16, 24), np.float32)
    values[:, 12:] = 3.0
    score = np.ones((32, 48), np.float32)
    weighted = ScoreWeight(values, _preprocess())(score)
    np.testing.assert_allclose(weighted[:, :20], 1.0, rtol=1e-5)
    np.testing.assert_allclose(weighted[:, 28:], 3.0, rtol=1e-5)
    assert weighted.dtype == np.float32
    np.testing.assert_array_equal(score, 1.0)


def test_score_weight_keeps_few_sizes(rng) -> None:
    weight = ScoreWeight(np.ones((16, 24), np.float32), _preprocess())
    for side in range(10, 30):
        weight(rng.random((side, side)).astype(np.float32))
    assert len(weight._native) <= 4


def test_score_weight_refuses_another_size() -> None:
    with pytest.raises(ShapeError, match=r"must be \(16, 24\); found \(24, 16\)"):
        ScoreWeight(np.ones((24, 16), np.float32), _preprocess())


def test_weights_return_from_the_bundle(make_bundle, rng) -> None:
    bundle = make_bundle(channels=1)
    assert load_weight(bundle) is None
    values = rng.uniform(0.5, 2, (16, 16)).astype(np.float32)
    changes = {"weight_file": "w.npy", "level": (0.1, 0.3)}
    calibration = bundle.manifest.calibration.model_copy(update=changes)
    updated = update_bundle(bundle, files={"w.npy": encode_weight(values)}, calibration=calibration)
    loaded = load_weight(updated)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.values, values)
    assert loaded.level == Level(0.1, 0.3)


def test_level_evens_out_frames_up_to_the_roughest_normal() -> None:
    level = Level(0.1, 0.3)
    flat = np.full((20, 30), 0.1, np.float32)
    assert level.factor(flat) == pytest.approx(1.0)
    assert level.factor(2 * flat) == pytest.approx(1.5 * 0.1 / (0.2 + 0.05))
    assert level.factor(0 * flat) == pytest.approx(3.0)
    # A frame that is wrong all over must not excuse itself.
    assert level.factor(50 * flat) == level.factor(3 * flat)


def test_score_weight_levels_what_is_weighted_already(rng) -> None:
    score = rng.random((30, 40)).astype(np.float32)
    twice = ScoreWeight(np.full((16, 24), 2.0, np.float32), _preprocess(), Level(0.5, 5.0))
    once = ScoreWeight(None, _preprocess(), Level(0.5, 5.0))
    np.testing.assert_allclose(twice(score), once(2 * score), rtol=1e-5)
    assert ScoreWeight(None, _preprocess())(score) is not score
    np.testing.assert_array_equal(ScoreWeight(None, _preprocess())(score), score)


def test_frame_level_is_the_median_also_of_large_frames(rng) -> None:
    small = rng.random((31, 17)).astype(np.float32)
    assert frame_level(small) == pytest.approx(float(np.median(small)))
    large = rng.random((1500, 2000)).astype(np.float32)
    # 100,000 samples of a uniform law: standard error of the median 0.5 / sqrt(n) = 0.0016.
    assert frame_level(large) == pytest.approx(0.5, abs=0.008)


def test_damaged_weights_are_a_bundle_error(make_bundle) -> None:
    bundle = make_bundle(channels=1)
    calibration = bundle.manifest.calibration.model_copy(update={"weight_file": "w.npy"})
    with pytest.raises(BundleError, match="no record"):
        load_weight(update_bundle(bundle, calibration=calibration))
    damaged = update_bundle(bundle, files={"w.npy": b"nothing"}, calibration=calibration)
    with pytest.raises(BundleError, match="cannot be used"):
        load_weight(damaged)
