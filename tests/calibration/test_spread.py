"""Weights fitted on normal images, each half judged by the other."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.bundle.manifest import Preprocess
from unblemish.calibration.scores import ScoreStore
from unblemish.calibration.spread import can_weigh_places, cross_weights, fit_level, fit_values
from unblemish.runtime.weighting import ScoreWeight

PREPROCESS = Preprocess(width=20, height=20, channels=1, low=-1.0, high=1.0)


def _scores(count: int, rng: np.random.Generator):
    scale = np.full((40, 40), 0.05)
    scale[:, 20:] = 0.4
    return [np.abs(rng.normal(0, scale)).astype(np.float32) for _ in range(count)]


def test_fit_values_evens_out_the_spread(rng) -> None:
    weight = ScoreWeight(fit_values(_scores(60, rng), PREPROCESS), PREPROCESS)
    fresh = np.mean([weight(score) for score in _scores(200, rng)], axis=0)
    left, right = fresh[:, :15].mean(), fresh[:, 25:].mean()
    # Before, 8 to 1; the floor b = 1/4 leaves (s / (s + m / 4)), 0.89 to 0.50 of m.
    assert right / left < 2.0
    assert weight.values[:, :8].mean() > 2 * weight.values[:, 12:].mean()


def test_cross_weights_have_not_seen_their_image(rng) -> None:
    scores = _scores(40, rng)
    marked = [score.copy() for score in scores]
    marked[6][10:14, 10:14] = 50.0
    _, plain = cross_weights(scores, PREPROCESS)
    both, crossed = cross_weights(marked, PREPROCESS)
    np.testing.assert_array_equal(plain[0].values, crossed[0].values)
    assert not np.array_equal(plain[1].values, crossed[1].values)
    assert both.values[6, 6] < plain[0].values[6, 6]


@pytest.mark.parametrize(("normals", "expected"), [(39, False), (40, True)])
def test_weights_by_place_needs_twenty_normals_in_each_half(normals, expected) -> None:
    assert can_weigh_places(PREPROCESS, normals) is expected
    tiles = PREPROCESS.model_copy(update={"geometry": "tiles"})
    assert not can_weigh_places(tiles, normals)


def test_score_store_returns_what_it_was_given_and_leaves_nothing(rng) -> None:
    scores = _scores(3, rng)
    with ScoreStore() as store:
        for score in scores:
            store.append(score)
        folder = store._path(0).parent
        assert len(store) == 3
        for kept, score in zip(store, scores, strict=True):
            np.testing.assert_array_equal(kept, score)
        with pytest.raises(IndexError):
            store[3]
    assert not folder.exists()


def test_fit_level_takes_the_typical_and_the_largest_median() -> None:
    frames = [np.full((8, 8), value, np.float32) for value in (0.1, 0.2, 0.25, 0.5, 0.2)]
    level = fit_level(frames)
    assert level is not None
    assert level == pytest.approx((0.2, 0.5))
    assert fit_level([np.zeros((8, 8), np.float32)] * 3) is None
