"""What a solver is: immutable settings, a typed state, and init / step / done over it.

A solver never calls the objective. It asks for value and gradient at `state.query` and is told in
`step`, so that one driver (`loop.run`) owns iterations, deadlines and failure, and every step costs
one evaluation. All arrays carry the items of a batch in front: (B, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Bool = NDArray[np.bool_]
Index = NDArray[np.intp]
Variables = tuple[Float, ...]  # groups of variables, each (B, ...)


class State(Protocol):
    """A solver's record between two steps."""

    @property
    def query(self) -> Variables:
        """Where value and gradient are wanted next; not to be written to."""


S = TypeVar("S", bound=State)


class Solver(Protocol[S]):
    """An iteration over a batch of independent problems."""

    def init(self, start: Variables) -> S:
        """State whose first query is `start` (copied)."""

    def step(self, state: S, value: Double, gradient: Variables) -> S:
        """Take in value (B,) and gradient at `state.query`; may reuse the memory of `state`.

        A row whose evaluation failed has value inf and gradient 0.
        """

    def done(self, state: S) -> Bool:
        """Rows (B,) that no further step can improve."""

    def moved(self, state: S) -> Bool:
        """Rows (B,) whose last step was taken; a refused trial says nothing about progress."""

    def restart(self, state: S, rows: Bool) -> S:
        """The objective of these rows changed: look at their best point again."""

    def take(self, state: S, rows: Index) -> S:
        """Keep only these rows, in this order."""


@dataclass(frozen=True)
class Evaluation:
    """Value (B,) and gradients (as the variables) at a query; valid until the next evaluation."""

    value: Double
    gradient: Variables


class Problem(Protocol):
    """The objective of a batch of items, by items and stages of a schedule."""

    @property
    def stages(self) -> int:
        """Stages of the schedule; an item ends in the last."""

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        """Evaluate row b of `query` as item `items[b]` in stage `stage[b]`."""
