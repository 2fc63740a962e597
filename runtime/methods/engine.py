"""The generator as a method sees it: latents (B, n) to images (B, C, h, w), and the way back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from unblemish.runtime.backends.protocol import Array, Pair
from unblemish.runtime.solvers.protocol import Float


@dataclass
class Stopwatch:
    """Seconds spent by stage, added up."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, began: float) -> float:
        """Book the time since `began` (perf_counter) on `stage`; returns now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - began
        return now


class GeneratorEngine:
    """A differentiable generator.

    Args:
        pair: forward and backward engine.
        latent, image: names of the tensors with those roles.
    """

    def __init__(self, pair: Pair, latent: str, image: str) -> None:
        self._pair = pair
        self._latent = latent
        self._image = image
        self._shape = next(spec.shape for spec in pair.inputs if spec.name == latent)
        self.watch = Stopwatch()

    def forward(self, z: Float, weights: Mapping[str, Array] | None = None) -> Float:
        """Images (B, C, h, w) of latents (B, n); valid until the next call.

        z and the weights are read again by `backward`: they must not change in between.
        """
        began = time.perf_counter()
        feeds = {self._latent: self._shaped(z), **(weights or {})}
        images = self._pair.forward(feeds)[self._image]
        self.watch.add("forward", began)
        return images

    def backward(self, cotangent: Float) -> tuple[Float, Mapping[str, Array]]:
        """Gradient with respect to z (B, n), and to every weight that was fed, by name."""
        began = time.perf_counter()
        gradients = dict(self._pair.backward({self._image: cotangent}))
        self.watch.add("backward", began)
        grad = gradients.pop(self._latent)
        return grad.reshape(len(grad), -1), gradients

    def _shaped(self, z: Float) -> Array:
        if len(self._shape) == 2:
            return z
        return z.reshape(len(z), *(int(d) for d in self._shape[1:]))
