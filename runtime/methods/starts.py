"""Where a search begins: random latents whose images are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from unblemish.runtime.solvers.protocol import Double, Float, Index

_SIDE = 32  # thumbnails: rough likeness is what a start is chosen by
_BATCH = 8


@dataclass(frozen=True)
class LatentBank:
    """Random latents (K, n) and the thumbnails (K, C, a, b) of their images.

    The images of a fixed set of latents never change, so the best of N candidates costs N small
    comparisons at inspection and not N passes of the generator.
    """

    latents: Float
    thumbnails: Float

    @staticmethod
    def build(
        generate: Callable[[Float], Float],
        count: int,
        size: int,
        *,
        seed: int = 0,
        batch: int = _BATCH,
    ) -> LatentBank:
        """Draw `count` standard normal latents of `size` and generate their images.

        Args:
            generate: (B, n) -> (B, C, h, w).
        """
        latents = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
        chunks = [
            thumbnails(generate(np.ascontiguousarray(latents[i : i + batch])))
            for i in range(0, count, batch)
        ]
        return LatentBank(latents, np.concatenate(chunks))

    def nearest(self, images: Float, count: int, lam: Float) -> Float:
        """The best `count` latents for each image, (T, count, n).

        They are taken in turn from the ranking by mean squared error and from that by the profile
        loss: the first is right where defects are small, the second where they are large or bright.

        Args:
            images: (T, C, h, w).
            lam: (T,) sparsity weight of the profile loss.
        Source: seed 000's code starts from the best of 1,000 by mean squared error.
        """
        small = thumbnails(images)
        picked = []
        for image, weight in zip(small, lam, strict=True):
            plain, robust = distances(self.thumbnails, image, float(weight))
            picked.append(self.latents[_in_turn(np.argsort(plain), np.argsort(robust), count)])
        return np.stack(picked)


def distances(candidates: Float, image: Float, lam: float) -> tuple[Double, Double]:
    """Mean squared error and profile loss of thumbnails (K, C, a, b) to one, (K,) each."""
    squared = np.square(candidates - image)
    plain: Double = squared.reshape(len(squared), -1).mean(axis=1, dtype=np.float64)
    shared = squared.sum(axis=1)
    robust = np.where(2 * shared < lam, shared, lam - lam**2 / (4 * np.maximum(shared, 1e-30)))
    return plain, robust.reshape(len(robust), -1).sum(axis=1, dtype=np.float64)


def _in_turn(first: Index, second: Index, count: int) -> list[int]:
    chosen: dict[int, None] = {}
    for a, b in zip(first, second, strict=True):
        chosen.setdefault(int(a))
        chosen.setdefault(int(b))
        if len(chosen) >= count:
            break
    return list(chosen)[:count]


def thumbnails(images: Float) -> Float:
    """Shrink (B, C, h, w) by area averages until no side is longer than 32."""
    rows, channels, height, width = images.shape
    factor = max(height, width) / _SIDE
    if factor <= 1:
        return np.array(images, np.float32)
    size = max(round(height / factor), 1), max(round(width / factor), 1)
    out = np.empty((rows, channels, *size), np.float32)
    for target, source in zip(
        out.reshape(-1, *size), images.reshape(-1, height, width), strict=True
    ):
        target[...] = cv2.resize(source, size[::-1], interpolation=cv2.INTER_AREA)
    return out
