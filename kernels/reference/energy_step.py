"""One step of energy projection in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


class Rule(NamedTuple):
    """The settings of `EnergyTerms.energy_step`."""

    step: int
    beta1: float
    beta2: float
    eps: float
    weigh_step: bool
    proximal: bool
    lower: float
    upper: float


def energy_step(
    x: NDArray[Any],
    start: NDArray[Any],
    slope: NDArray[Any],
    lam: NDArray[Any],
    rate: NDArray[Any],
    *,
    mask: NDArray[Any] | None,
    restored: NDArray[Any] | None,
    moments: tuple[NDArray[Any], NDArray[Any]] | None,
    rule: Rule,
) -> tuple[Double, tuple[Double, ...], Double]:
    """Return the new x, the new moments and the l1 term of `EnergyTerms.energy_step`.

    `slope` is that of L_r. Source: seed 002, eqs. 4, 5, 7 and 8.
    """
    here, from_ = x.astype(np.float64), start.astype(np.float64)
    lam_, rate_ = (v.astype(np.float64).reshape(-1, 1, 1, 1) for v in (lam, rate))
    with np.errstate(all="ignore"):
        weight = np.ones(x.shape) if mask is None else mask * np.ones(x.shape)
        if restored is not None:
            weight *= (here - restored) ** 2
        sign = 0.0 if rule.proximal else np.sign(here - from_)
        g = slope.astype(np.float64) + lam_ * sign
        found: tuple[Double, ...] = ()
        if moments is None:
            size, step = rate_ * weight, rate_ * weight * g
        else:
            target = g if rule.weigh_step else weight * g
            first = rule.beta1 * moments[0].astype(np.float64) + (1 - rule.beta1) * target
            second = rule.beta2 * moments[1].astype(np.float64) + (1 - rule.beta2) * target**2
            found = (first, second)
            denominator = np.sqrt(second / (1 - rule.beta2**rule.step)) + rule.eps
            size = rate_ * weight / denominator
            step = rate_ * first / (1 - rule.beta1**rule.step) / denominator
            step = step * (weight if rule.weigh_step else 1.0)
        moved = here - step
        if rule.proximal:
            away = moved - from_
            moved = from_ + np.sign(away) * np.maximum(np.abs(away) - size * lam_, 0)
        l1 = lam * np.sum(np.abs(here - from_), axis=(1, 2, 3))
    return np.clip(moved, rule.lower, rule.upper), found, l1
