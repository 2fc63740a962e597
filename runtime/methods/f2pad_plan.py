"""Schedules of F2PAD: the paper's, and the fast one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from unblemish.bundle.searches import F2padSettings
from unblemish.errors import ConfigError
from unblemish.runtime.methods.decomposition import Weights
from unblemish.runtime.methods.guard import Rules
from unblemish.runtime.solvers.adan import Sharing
from unblemish.runtime.solvers.loop import Limits
from unblemish.runtime.solvers.protocol import Double

Schedule = Literal["fast", "descent", "paper"]

# What gamma_0 multiplies, and the smallest |a| that it is divided by. Seed 003 gives gamma_0 = 1
# for a gradient clipped at 0.03; Adan divides gradients by their own size, so that its step of 1
# would cross the range of intensities at once. Of 0.01, 0.03 and 0.06 the second outlines best.
_PAPER_RATE, _PAPER_FLOOR, _PAPER_PATIENCE = 0.03, 0.05, 5

_FAST_STEP = 0.05  # units, of every step
_FAST_LADDER = (0.1, 0.4, 1.0)  # shares of beta, stage by stage
_FAST_INTERIM = 10  # steps of a stage before the last
_FAST_STEPS = 60
_FAST_RADIUS = 3  # px; at sigma_0 = 1.1 the weights beyond are below 1e-6
_FAR = 1e6  # units; the floor of eq. (15) that makes all steps alike
_REESTIMATE_STEPS = 12

# Of 160 defects on four textures, those whose objective fell below 0.85 of that of the frame were
# outlined well (Dice 0.91 and more, 2 worse than the plain map); of the others most were not.
_DESCENT = Rules()
_CHOICE = Rules(least=0.0, lowered=0.15, inside=0.0)

# Squared Mahalanobis distance that 1 in 1000 samples of a Gaussian exceeds, by channels.
_RARE = {1: 10.83, 2: 13.82, 3: 16.27}


@dataclass(frozen=True)
class Plan:
    """What a schedule does.

    Args:
        whole: the crop is the whole model image, and every cell and pixel counts.
        peak_share: the initial mask of a part begins at this share of its own peak, 0 at the
            detector's threshold.
        ladder: shares of beta, stage by stage. interim: steps of every stage but the last.
        steps: in all. decrease, patience: see `Limits`.
        rate, floor: of eq. (15), units. radius: of the sharing.
        opening: side of the final opening, px. least_area: smaller parts of the mask are dropped.
        again: steps of the re-estimation.
        margin: model px of surroundings in a crop.
        choose: compare candidate masks instead of descending.
        rules: of keeping the plain outline.
    """

    whole: bool
    peak_share: float
    ladder: tuple[float, ...]
    interim: int
    steps: int
    decrease: float
    patience: int
    rate: float
    floor: float
    radius: int
    opening: int
    least_area: int
    again: int
    margin: int = 32
    choose: bool = False
    rules: Rules = _DESCENT

    def limits(self, deadline: float | None) -> Limits:
        """Of the search."""
        return Limits(
            self.steps,
            patience=self.patience,
            deadline=deadline,
            decrease=self.decrease,
            interim=self.interim,
        )

    def sharing(self, settings: F2padSettings) -> Sharing | None:
        """Of gradients."""
        if not self.radius:
            return None
        return Sharing(self.radius, settings.sigma_space, settings.sigma_colour)


def plan_for(schedule: str, settings: F2padSettings) -> Plan:
    """The plan of a schedule. Raises: ConfigError where there is none of that name."""
    if schedule == "paper":
        return Plan(
            whole=True, peak_share=0.0, ladder=(1.0,), interim=0, steps=settings.max_steps,
            decrease=settings.decrease, patience=_PAPER_PATIENCE,
            rate=_PAPER_RATE * settings.step_size, floor=_PAPER_FLOOR, radius=settings.radius,
            opening=3, least_area=0, again=settings.max_steps,
        )  # fmt: skip
    if schedule not in ("fast", "descent"):
        raise ConfigError(f"schedule must be 'fast', 'descent' or 'paper'; got '{schedule}'.")
    descent = Plan(
        whole=False, peak_share=0.45, ladder=_FAST_LADDER, interim=_FAST_INTERIM,
        steps=min(_FAST_STEPS, settings.max_steps), decrease=0.0, patience=5,
        rate=_FAST_STEP * _FAR * settings.step_size, floor=_FAR,
        radius=min(settings.radius, _FAST_RADIUS), opening=0, least_area=4,
        again=_REESTIMATE_STEPS,
    )  # fmt: skip
    if schedule == "descent":
        return descent
    return replace(descent, peak_share=0.0, least_area=1, margin=16, choose=True, rules=_CHOICE)


def paper_weights(settings: F2padSettings, plan: Plan, flagged: Double, area: Double) -> Weights:
    """alpha_1, alpha_2 and beta = beta_0 / (model pixels of the initial mask), per native pixel."""
    beta = settings.beta0 / np.maximum(flagged, 1.0)
    return _weights(settings, plan, settings.alpha1 * np.ones_like(beta), beta, area)


def balanced_weights(
    settings: F2padSettings,
    plan: Plan,
    flagged: Double,
    area: Double,
    before: Double,
    after: Double,
    channels: int,
) -> Weights:
    """Weights in proportion to what there is to gain, so that no defect is too small for them.

    The start n0 lowers the scores from `before` to `after`. Flagging a pixel costs
    beta (l_a(1 unit) - l_a(0)); with beta = balance * gain / (pixels of the initial mask * that),
    flagging the whole initial mask costs `balance` times the gain. The prior pays as much as that
    for a pixel of a colour as rare as 1 in 1000 normal ones.
    """
    gain = np.maximum(before - after, 0.1 * before)
    cost = log_cost(settings.epsilon)
    beta = settings.balance * gain / (np.maximum(flagged, 1.0) * cost)
    rare = _RARE.get(channels, 5.0 * channels)
    alpha1 = settings.prior_strength * beta * cost / rare
    return _weights(settings, plan, alpha1, beta, area)


def log_cost(epsilon: float) -> float:
    """l_a of a pixel that differs by one unit, minus that of one that does not, eq. (8)."""
    return float(np.log(np.sqrt(1 + epsilon) + 1) - 0.5 * np.log(epsilon))


def _weights(
    settings: F2padSettings, plan: Plan, alpha1: Double, beta: Double, area: Double
) -> Weights:
    """Sums over pixels scale with the area, the total variation with lengths."""
    ladder = np.array(plan.ladder)[:, None] * (beta * area)
    return Weights(
        (alpha1 * area).astype(np.float32),
        (settings.alpha2 * np.sqrt(area)).astype(np.float32),
        np.ascontiguousarray(ladder, np.float32),
        settings.epsilon,
    )
