"""A threshold on image scores that rejects a stated share of normal images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import CalibrationError, ConfigError

FEWEST = 10  # normals; with fewer, the tail is a guess
_TAIL_SHARE = 0.1
_FEWEST_IN_TAIL = 5


@dataclass(frozen=True)
class TailThreshold:
    """A threshold and what it is worth.

    Args:
        value: an image is rejected where its score is larger.
        expected_rate: false-reject rate to be expected of new normal images.
        observed_rate: share of the given scores above `value`.
        smallest_observable: 1 / (N + 1): smaller rates are extrapolated.
        method: 'quantile' of the scores, or 'tail': an exponential fitted to the largest tenth.
    """

    value: float
    expected_rate: float
    observed_rate: float
    smallest_observable: float
    method: Literal["quantile", "tail"]


def reject_threshold(scores: NDArray[np.floating[Any]], rate: float) -> TailThreshold:
    """Choose the threshold that a share `rate` of new normal images will exceed.

    Where `rate` is at least the share of the tail (a tenth), the threshold is the order statistic
    ceil((1 - rate)(N + 1)), which new scores of the same distribution exceed with probability
    <= rate. Below, with u the (k+1)-th largest score, b the mean excess of the k scores above it,
    and an exponential tail of unknown scale, the predictive tail is

        P(new score > u + t) = k / N (1 + t / (k b))^-k  =  rate,

    which counts the uncertainty of b: a plug-in fit of 30 scores rejects several times too many. A
    lighter tail is rejected less often, a heavier one (log-normal, Student) up to twice as often.
    Where not one rejection in N + 1 is asked for, none of the scores given is rejected either.

    Args:
        scores: one score per normal image, (N,).
        rate: in (0, 1).
    Raises: ConfigError where `rate` is not in (0, 1); CalibrationError for fewer than 10 scores,
        or where the scores are not finite.
    """
    if not 0 < rate < 1:
        raise ConfigError(f"the false-reject rate must lie between 0 and 1; found {rate}.")
    ordered = np.sort(np.asarray(scores, np.float64))[::-1]
    count = ordered.size
    if count < FEWEST:
        raise CalibrationError(
            f"{count} normal images are too few for a threshold; at least {FEWEST} are needed, "
            "and about 100 for a false-reject rate of 1 %."
        )
    if not np.isfinite(ordered).all():
        raise CalibrationError(
            "some normal images have a score that is not finite: the search failed on them. "
            "Inspect them one by one, and check the bundle."
        )
    k = min(max(_FEWEST_IN_TAIL, math.ceil(_TAIL_SHARE * count)), count - 1)
    if rate * count >= k:
        return _judged(_order_statistic(ordered, rate), rate, ordered, "quantile")
    excess = float((ordered[:k] - ordered[k]).mean())
    growth = k * math.expm1(math.log(k / (count * rate)) / k)
    # Equal scores leave no tail to fit: the next float above them all is the best that can be said.
    value = max(ordered[k] + excess * growth, float(np.nextafter(ordered[k], np.inf)))
    if rate * (count + 1) < 1:
        value = max(value, float(ordered[0]))
    return _judged(float(value), rate, ordered, "tail")


def _order_statistic(descending: NDArray[np.float64], rate: float) -> float:
    rank = math.ceil((1 - rate) * (descending.size + 1))  # from the smallest, counted from 1
    return float(descending[max(0, descending.size - rank)])


def _judged(
    value: float, rate: float, scores: NDArray[np.float64], method: Literal["quantile", "tail"]
) -> TailThreshold:
    observed = float((scores > value).mean())
    return TailThreshold(value, rate, observed, 1 / (scores.size + 1), method)
