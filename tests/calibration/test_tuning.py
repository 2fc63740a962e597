"""The choice of lambda, against exhaustive search on simulated score maps."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.calibration.defects import FILLS, SHAPES, paste_defect
from unblemish.calibration.metrics import dice
from unblemish.calibration.tuning import (
    Tuner,
    dice_curve,
    lambda_grid,
    scaled_sigmas,
    score_levels,
)
from unblemish.errors import CalibrationError
from unblemish.runtime.decision import smooth

BEST = 0.02


def _samples(count: int, rng: np.random.Generator):
    clean = np.full((48, 64), 0.5, np.float32)
    kinds = [(shape, fill) for shape in SHAPES for fill in FILLS]
    return [
        paste_defect(clean, rng, shape=kinds[i % 8][0], fill=kinds[i % 8][1]) for i in range(count)
    ]


def _score_of(frame, lam: float):
    """The defect, under noise that grows with the distance of lambda from BEST."""
    noise = np.random.default_rng(7).normal(0, 1, frame.shape)
    level = 0.02 + 0.1 * abs(np.log10(lam / BEST))
    return (np.abs(frame - 0.5) + level * np.abs(noise)).astype(np.float32)


def test_dice_curve_equals_brute_force(rng) -> None:
    score = rng.gamma(2, 0.1, (30, 20)).astype(np.float32)
    truth = rng.random((30, 20)) < 0.2
    levels = np.array([0.0, 0.1, 0.25, 0.5, 5.0])
    expected = [dice(score > level, truth) for level in levels]
    np.testing.assert_allclose(dice_curve(score, truth, levels), expected, rtol=1e-12)


def test_dice_curve_is_strict_at_equal_scores() -> None:
    score = np.array([[0.25, 0.5]], np.float32)
    truth = np.array([[False, True]])
    np.testing.assert_array_equal(dice_curve(score, truth, np.array([0.25, 0.5])), [1.0, 0.0])


def test_lambda_grid_spans_residuals_of_one_to_hundred_percent() -> None:
    grid = lambda_grid(2.0, 3)
    assert grid[0] == pytest.approx(2 * 3 * 0.02**2)
    assert grid[-1] == pytest.approx(2 * 3 * 2.0**2)
    assert np.diff(np.log(grid)) == pytest.approx(np.log(grid[-1] / grid[0]) / 6)


def test_scaled_sigmas_follow_large_frames_up_to_four_times() -> None:
    assert scaled_sigmas((0.0, 1.5), 128) == (0.0, 1.5)
    assert scaled_sigmas((0.0, 1.5), 800) == (0.0, 3.0)
    assert scaled_sigmas((0.0, 1.5), 9000) == (0.0, 6.0)


def test_tuner_finds_the_best_lambda(rng) -> None:
    tuner = Tuner(_samples(16, rng), _score_of, score_levels(1.0))
    found = tuner.tune(lambda_grid(1.0, 1))
    # The last step of the search is a quarter of the coarse one: 10^(4/6/4) = 1.47.
    assert BEST / 1.5 < found.best.lam < BEST * 1.5
    assert found.best.dice == max(t.dice for t in found.trials if t.images == found.best.images)
    assert [t.lam for t in found.trials] == sorted(t.lam for t in found.trials)


def test_tuner_reports_dice_at_its_common_threshold(rng) -> None:
    samples = _samples(8, rng)
    best = Tuner(samples, _score_of, score_levels(1.0)).tune(lambda_grid(1.0, 1)).best
    found = [
        dice(smooth(_score_of(s.image, best.lam), best.sigma) > best.threshold, s.mask)
        for s in samples
    ]
    assert np.mean(found) == pytest.approx(best.dice, rel=1e-12)
    assert np.std(found) == pytest.approx(best.spread, rel=1e-9)


def test_tuner_searches_less_than_exhaustively_and_nothing_twice(rng) -> None:
    calls: list[tuple[int, float]] = []
    samples = _samples(32, rng)
    number = {s.image.tobytes(): i for i, s in enumerate(samples)}

    def counted(frame, lam: float):
        calls.append((number[frame.tobytes()], lam))
        return _score_of(frame, lam)

    told: list[bool] = []
    tuner = Tuner(samples, counted, score_levels(1.0), progress=lambda: told.append(True))
    found = tuner.tune(lambda_grid(1.0, 1))
    assert len(set(calls)) == len(calls) == sum(told)
    assert len(calls) < 0.7 * 32 * len(found.trials)


def test_tuner_prefers_smoothing_under_noise(rng) -> None:
    samples = [s for s in _samples(32, rng) if s.shape == "mixed_large"]

    def noisy(frame, lam: float):
        noise = np.random.default_rng(7).normal(0, 0.3, frame.shape)
        return (np.abs(frame - 0.5) + np.abs(noise)).astype(np.float32)

    assert Tuner(samples, noisy, score_levels(1.0)).tune([0.1]).best.sigma >= 1.0


def test_tuner_says_so_when_nothing_is_found(rng) -> None:
    def blind(frame, lam: float):
        return np.zeros(frame.shape, np.float32)

    with pytest.raises(CalibrationError, match="finds none of the synthetic defects"):
        Tuner(_samples(8, rng), blind, score_levels(1.0)).tune(lambda_grid(1.0, 1))
