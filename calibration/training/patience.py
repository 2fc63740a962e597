"""Early stopping: the best weights so far, and how long ago they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

CHECK_EVERY = 50  # updates


@dataclass
class Patience:
    """Keeps the weights of the smallest held-back loss.

    Args:
        limit: checks without improvement after which a run has settled; 0 never checks.
        best: smallest loss so far; `step` its update, `weights` of that time.
        stale: checks since then.
    """

    limit: int
    best: float = float("inf")
    step: int = 0
    stale: int = 0
    weights: dict[str, Tensor] | None = None

    def due(self, step: int) -> bool:
        """Whether the held-back loss should be measured after update number `step` (from 1)."""
        return self.limit > 0 and step % CHECK_EVERY == 0

    def saw(self, loss: float, step: int, weights: Mapping[str, Tensor]) -> None:
        """Take in a measurement; the weights are copied where they are the best."""
        if loss < self.best:
            self.best, self.step, self.stale = loss, step, 0
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        else:
            self.stale += 1

    @property
    def settled(self) -> bool:
        """Whether there was no improvement for so long."""
        return 0 < self.limit <= self.stale

    def plain(self) -> dict[str, Any]:
        """All but the weights, for a checkpoint."""
        return {"best": self.best, "step": self.step, "stale": self.stale}

    def restore(self, plain: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Undo `plain`; `weights` are the best ones."""
        self.best, self.step = float(plain["best"]), int(plain["step"])
        self.stale, self.weights = int(plain["stale"]), dict(weights)
