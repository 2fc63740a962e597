"""Projection and shrinkage by turns, without gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unblemish.runtime.solvers.protocol import Bool, Double, Float, Index, Variables


@dataclass
class AlternationState:
    """Images under search, where they began; the flags are (B,)."""

    query: Variables
    start: Float
    failed: Bool
    arrived: Bool


@dataclass(frozen=True)
class Alternation:
    """x <- x_0 + shrink(y - x_0, lam / (2 p)), with y the reconstruction of x.

    With y held fixed this minimises p |x - y|^2 + lam |x - x_0|_1 exactly. Were y the nearest image
    of the manifold, the two steps would be block coordinate descent on the energy of eq. (4): the
    gradient of a squared distance does not see how the nearest point moves. So no way back through
    the network is needed. An evaluation's gradient is (y, t): t broadcasts against the images, is
    lam / (2 p) and may differ from element to element. The loss of training images is no place
    to stop: the first turn often falls below it, and the next ones still sharpen the outline.

    Args:
        least: an item has arrived where no pixel changes by more.
    """

    lower: float
    upper: float
    least: float = 1e-3

    def init(self, start: Variables) -> AlternationState:
        """See `Solver.init`."""
        (x,) = start
        nobody = np.zeros(len(x), np.bool_)
        return AlternationState(
            (np.array(x, np.float32),), np.array(x, np.float32), nobody, nobody.copy()
        )  # fmt: skip

    def step(self, state: AlternationState, value: Double, gradient: Variables) -> AlternationState:
        """See `Solver.step`."""
        (x,), (made, threshold) = state.query, gradient
        apart = made - state.start
        moved = np.sign(apart) * np.maximum(np.abs(apart) - threshold, 0)
        new = np.clip(state.start + moved, self.lower, self.upper)
        change = np.abs(new - x).reshape(len(x), -1).max(axis=1).astype(np.float64)
        arrived = change <= self.least
        failed = state.failed | ~np.isfinite(value)
        return replace(state, query=(new,), failed=failed, arrived=arrived)

    def done(self, state: AlternationState) -> Bool:
        """See `Solver.done`."""
        return state.failed | state.arrived

    def moved(self, state: AlternationState) -> Bool:
        """See `Solver.moved`."""
        return np.ones_like(state.failed)

    def restart(self, state: AlternationState, rows: Bool) -> AlternationState:
        """See `Solver.restart`: there is one stage."""
        return state

    def take(self, state: AlternationState, rows: Index) -> AlternationState:
        """See `Solver.take`."""
        return AlternationState(
            tuple(group[rows] for group in state.query),
            state.start[rows],
            state.failed[rows],
            state.arrived[rows],
        )
