"""Gradient steps on images, weighted pixel by pixel and kept in the valid range."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unblemish.kernels.api import Kernels
from unblemish.runtime.solvers.protocol import Bool, Double, Float, Index, Variables


@dataclass
class StepState:
    """Images under search, where they began, Adam's moments, steps so far; the flags are (B,)."""

    query: Variables
    start: Float
    free: Float | None
    moments: tuple[Float, Float] | None
    steps: int
    failed: Bool
    arrived: Bool


@dataclass(frozen=True)
class ProjectedStep:
    """x <- clip(x - alpha w (g + lam sign(x - x_0))): eqs. (5), (7) and (8) of seed 002.

    An evaluation's gradient is (pulled, direct, y, L_r): that of L_r alone is g = pulled +
    direct_factor * direct, y the reconstruction, and L_r (B,). w is (x - y)^2 where `tuned`, else
    1, and 0 where pixels are not free.

    Args:
        lam: weight of the l1 distance to the first images. alpha: step size.
        adam: the step is Adam's, of the weighted gradient.
        stop: L_r at which an item has arrived; None for none.
        lower, upper: valid range of the images.
        free: (N, 1, h, w), 1 where pixels may move; None for everywhere.
    """

    kernels: Kernels
    lam: float
    alpha: float
    tuned: bool
    adam: bool
    stop: float | None
    lower: float
    upper: float
    direct_factor: float = 1.0
    free: Float | None = None

    def init(self, start: Variables) -> StepState:
        """See `Solver.init`."""
        (x,) = start
        moments = (np.zeros_like(x), np.zeros_like(x)) if self.adam else None
        nobody = np.zeros(len(x), np.bool_)
        return StepState(
            (np.array(x, np.float32),), np.array(x, np.float32), self.free, moments, 0,
            nobody, nobody.copy(),
        )  # fmt: skip

    def step(self, state: StepState, value: Double, gradient: Variables) -> StepState:
        """See `Solver.step`."""
        (x,), (pulled, direct, made, loss) = state.query, gradient
        rows, steps = len(x), state.steps + 1
        first, second = state.moments or (None, None)
        self.kernels.energy_step(
            x, state.start, pulled,
            np.full(rows, self.lam, np.float32), np.full(rows, self.alpha, np.float32),
            direct=direct, mask=state.free, restored=made if self.tuned else None,
            first=first, second=second, l1=np.empty(rows), squared_change=np.empty(rows),
            largest_change=np.empty(rows), step=steps, direct_factor=self.direct_factor,
            lower=self.lower, upper=self.upper,
        )  # fmt: skip
        arrived = state.arrived if self.stop is None else loss <= self.stop
        failed = state.failed | ~np.isfinite(value)
        return replace(state, steps=steps, failed=failed, arrived=arrived)

    def done(self, state: StepState) -> Bool:
        """See `Solver.done`."""
        return state.failed | state.arrived

    def moved(self, state: StepState) -> Bool:
        """See `Solver.moved`."""
        return np.ones_like(state.failed)

    def restart(self, state: StepState, rows: Bool) -> StepState:
        """See `Solver.restart`: there is one stage."""
        return state

    def take(self, state: StepState, rows: Index) -> StepState:
        """See `Solver.take`."""
        return StepState(
            tuple(group[rows] for group in state.query),
            state.start[rows],
            None if state.free is None else state.free[rows],
            None if state.moments is None else (state.moments[0][rows], state.moments[1][rows]),
            state.steps,
            state.failed[rows],
            state.arrived[rows],
        )
