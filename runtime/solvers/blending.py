"""A hole filled with the reconstruction's shape and the surroundings' level, by turns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unblemish.runtime.membrane import extend
from unblemish.runtime.solvers.protocol import Bool, Double, Index, Variables


@dataclass
class BlendingState:
    """Images under search, where they may move, (B, 1, h, w); the flags are (B,)."""

    query: Variables
    free: Bool
    failed: Bool
    arrived: Bool


@dataclass(frozen=True)
class Blending:
    """x <- y + (x - y carried into the hole), with y the reconstruction of x.

    With y held fixed this is the exact minimum of the squared differences of x - y between
    neighbours in the hole: x takes the slopes of y there and joins the known pixels at its rim.
    x <- y, which minimises |x - y|^2, would show at the rim what the model cannot make. An
    evaluation's gradient is (y,).

    Args:
        free: (N, 1, h, w), the hole. lower, upper: valid range of the images.
        least: an item has arrived where no pixel changes by more.
    Source: seed 002, eq. 7 without the gradient; the surface of Perez et al. 2003.
    """

    free: Bool
    lower: float
    upper: float
    least: float = 1e-3

    def init(self, start: Variables) -> BlendingState:
        """See `Solver.init`."""
        (x,) = start
        nobody = np.zeros(len(x), np.bool_)
        return BlendingState((np.array(x, np.float32),), self.free, nobody, nobody.copy())

    def step(self, state: BlendingState, value: Double, gradient: Variables) -> BlendingState:
        """See `Solver.step`."""
        (x,), (made,) = state.query, gradient
        apart = extend(x - made, state.free, start=x - made)
        blended = np.clip(made + apart, self.lower, self.upper)
        new = np.where(state.free, blended, x).astype(np.float32, copy=False)
        change = np.abs(new - x).reshape(len(x), -1).max(axis=1).astype(np.float64)
        failed = state.failed | ~np.isfinite(value)
        return replace(state, query=(new,), failed=failed, arrived=change <= self.least)

    def done(self, state: BlendingState) -> Bool:
        """See `Solver.done`."""
        return state.failed | state.arrived

    def moved(self, state: BlendingState) -> Bool:
        """See `Solver.moved`."""
        return np.ones_like(state.failed)

    def restart(self, state: BlendingState, rows: Bool) -> BlendingState:
        """See `Solver.restart`: there is one stage."""
        return state

    def take(self, state: BlendingState, rows: Index) -> BlendingState:
        """See `Solver.take`."""
        return BlendingState(
            (state.query[0][rows],), state.free[rows], state.failed[rows], state.arrived[rows]
        )
