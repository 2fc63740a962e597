"""Where a search begins: random latents whose images are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from unblemish.runtime.solvers.protocol import Float, Index

_SIDE = 16  # thumbnails: rough likeness is what a start is chosen by
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

        They are taken in turn from the ranking by mean squared error and from that by a robust
        loss: the first is right where defects are small, the second where they are large or bright.

        Args:
            images: (T, C, h, w).
            lam: (T,) where the robust loss saturates.
        Source: seed 000's code starts from the best of 1,000 by mean squared error.
        """
        small = thumbnails(images)
        picked = []
        for image, weight in zip(small, lam, strict=True):
            plain, robust = distances(self.thumbnails, image, float(weight))
            picked.append(self.latents[_in_turn(np.argsort(plain), np.argsort(robust), count)])
        return np.stack(picked)


def distances(candidates: Float, image: Float, lam: float) -> tuple[Float, Float]:
    """Mean squared error and robust loss of thumbnails (K, C, a, b) to one, (K,) each.

    The robust loss is the mean of min(r^2, lam): what the profile loss tends to on large residuals
    and what it is on small ones, without its division.
    """
    squared = candidates - image
    np.square(squared, out=squared)
    plain: Float = squared.reshape(len(squared), -1).mean(axis=1)
    shared = squared[:, 0] if squared.shape[1] == 1 else squared.sum(axis=1)
    np.minimum(shared, np.float32(lam), out=shared)
    robust: Float = shared.reshape(len(shared), -1).mean(axis=1)
    return plain, robust


def _in_turn(first: Index, second: Index, count: int) -> list[int]:
    chosen: dict[int, None] = {}
    for a, b in zip(first, second, strict=True):
        chosen.setdefault(int(a))
        chosen.setdefault(int(b))
        if len(chosen) >= count:
            break
    return list(chosen)[:count]


def thumbnails(images: Float) -> Float:
    """Shrink (B, C, h, w) by area averages until no side is longer than 16."""
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
