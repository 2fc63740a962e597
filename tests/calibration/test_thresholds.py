"""The reject threshold keeps its promise on simulated scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from unblemish.calibration.thresholds import reject_threshold
from unblemish.errors import CalibrationError, ConfigError

REPEATS = 400


def _true_rate(law, count: int, rate: float, rng: np.random.Generator) -> float:
    """Mean false-reject rate over repeated calibrations, from the law's own tail."""
    draws = law.rvs(size=(REPEATS, count), random_state=rng)
    return float(np.mean([law.sf(reject_threshold(scores, rate).value) for scores in draws]))


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("count", [30, 100, 500])
@pytest.mark.parametrize("law", [stats.gumbel_r(), stats.expon(), stats.gamma(3)])
def test_reject_threshold_attains_the_rate(law, count, rate, rng) -> None:
    found = _true_rate(law, count, rate, rng)
    # The tail's scale comes from k = 5 to 50 scores; over 400 repeats the mean rate of so skewed a
    # quantity still scatters by a quarter, and the fit is on the safe side for lighter tails.
    assert 0.3 * rate < found < 1.6 * rate


@pytest.mark.parametrize("law", [stats.lognorm(0.5), stats.t(5)])
def test_reject_threshold_stays_within_twice_the_rate_for_heavy_tails(law, rng) -> None:
    for count in (100, 500):
        assert _true_rate(law, count, 0.001, rng) < 0.0025


def test_reject_threshold_uses_the_order_statistic_for_large_rates(rng) -> None:
    scores = np.arange(1.0, 100.0)  # N = 99
    found = reject_threshold(rng.permutation(scores), 0.25)
    assert found.method == "quantile"
    assert found.value == 75.0
    assert found.observed_rate == pytest.approx(24 / 99)
    assert _true_rate(stats.norm(), 40, 0.3, rng) == pytest.approx(0.3, abs=0.02)


def test_reject_threshold_grows_as_the_rate_falls(rng) -> None:
    scores = rng.gamma(3, 1, 60)
    values = [reject_threshold(scores, rate).value for rate in (0.2, 0.05, 0.01, 1e-3, 1e-6)]
    assert values == sorted(values)
    assert np.isfinite(values).all()


def test_reject_threshold_says_what_the_sample_can_show(rng) -> None:
    found = reject_threshold(rng.gamma(3, 1, 49), 0.001)
    assert found.smallest_observable == pytest.approx(0.02)
    assert found.method == "tail"
    assert found.expected_rate == 0.001


def test_reject_threshold_rejects_no_score_given_where_less_than_one_is_asked_for(rng) -> None:
    scores = np.append(rng.normal(1, 0.1, 99), 30.0)
    assert reject_threshold(scores, 0.001).value == 30.0
    assert reject_threshold(scores, 0.001).observed_rate == 0.0
    assert reject_threshold(scores, 0.05).observed_rate >= 0.01


def test_reject_threshold_passes_equal_scores() -> None:
    found = reject_threshold(np.full(20, 0.5), 0.001)
    assert found.value > 0.5
    assert found.observed_rate == 0.0


def test_reject_threshold_says_what_is_wrong() -> None:
    with pytest.raises(CalibrationError, match="9 normal images are too few"):
        reject_threshold(np.ones(9), 0.01)
    with pytest.raises(ConfigError, match="between 0 and 1; found 0"):
        reject_threshold(np.ones(20), 0)
    with pytest.raises(CalibrationError, match="not finite"):
        reject_threshold(np.array([np.nan] * 20), 0.01)
