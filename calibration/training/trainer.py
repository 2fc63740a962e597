"""What the training loop sees of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


class Trainer(Protocol):
    """Networks, optimisers and moving average of one kind of model.

    `progress`, the share of the run done, is set by the loop before every step. All randomness of a
    step comes from the generator passed in.
    """

    kind: str
    bfloat16: bool
    progress: float

    def begin(self, draw: Callable[[int], Tensor]) -> None:
        """Start values of a fresh run; `draw(n)` gives n augmented training images."""

    def step(self, images: Tensor, generator: torch.Generator, step: int, lr: float) -> float:
        """One update on (batch, C, size, size) in [-1, 1]. Returns the loss."""

    def evaluate(self, images: Tensor) -> dict[str, float]:
        """Figures on held-back images."""

    def preview(self, images: Tensor) -> list[Tensor]:
        """Rows of the sample grid."""

    def settings_plain(self) -> dict[str, Any]:
        """Settings of the network."""

    def weights(self) -> dict[str, Tensor]:
        """What will be exported."""

    def discriminator(self) -> dict[str, Tensor] | None:
        """The discriminator, where there is one."""

    def growth(self) -> dict[str, float]:
        """Stage and fade of a growing model."""

    def state(self) -> dict[str, Any]:
        """What another run needs to go on exactly."""

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Undo `weights` and `state`."""


@runtime_checkable
class Measuring(Protocol):
    """A trainer of a model whose search stops by the losses of training images."""

    def losses(self, images: Tensor) -> Tensor:
        """Loss of every image in [-1, 1] by the weights that will be exported, (batch,)."""
