"""Adam over groups of variables, each with its own learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unblemish.kernels.api import Kernels
from unblemish.runtime.solvers.protocol import Bool, Double, Index, Variables


@dataclass
class AdamState:
    """Variables, moments (as the variables) and the number of steps taken; `failed` is (B,)."""

    query: Variables
    first: Variables
    second: Variables
    steps: int
    failed: Bool


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), the solver of the RGI paper.

    Args:
        kernels: carries out the update.
        rates: learning rate of each group of variables.
    Source: seed 000, appendices D and G: lr 0.1 for z and M, 1e-5 for the weights.
    """

    kernels: Kernels
    rates: tuple[float, ...]

    def init(self, start: Variables) -> AdamState:
        """See `Solver.init`."""
        query = tuple(np.array(group, np.float32) for group in start)
        first = tuple(np.zeros_like(group) for group in query)
        second = tuple(np.zeros_like(group) for group in query)
        return AdamState(query, first, second, 0, np.zeros(len(query[0]), np.bool_))

    def step(self, state: AdamState, value: Double, gradient: Variables) -> AdamState:
        """See `Solver.step`. The moments have no way round a failed row: it stays failed."""
        count = state.steps + 1
        for p, g, m, v, rate in zip(
            state.query, gradient, state.first, state.second, self.rates, strict=True
        ):
            self.kernels.adam(p, g, m, v, step=count, lr=rate)
        failed = state.failed | ~np.isfinite(value)
        return AdamState(state.query, state.first, state.second, count, failed)

    def done(self, state: AdamState) -> Bool:
        """See `Solver.done`."""
        return state.failed

    def moved(self, state: AdamState) -> Bool:
        """See `Solver.moved`."""
        return np.ones_like(state.failed)

    def restart(self, state: AdamState, rows: Bool) -> AdamState:
        """See `Solver.restart`: the moments live on."""
        return state

    def take(self, state: AdamState, rows: Index) -> AdamState:
        """See `Solver.take`."""
        return AdamState(
            tuple(group[rows] for group in state.query),
            tuple(group[rows] for group in state.first),
            tuple(group[rows] for group in state.second),
            state.steps,
            state.failed[rows],
        )
