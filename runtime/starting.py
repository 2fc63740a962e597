"""Choose where the search of every image begins."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from unblemish.bundle.manifest import Manifest
from unblemish.runtime.engines import Engines
from unblemish.runtime.methods.starts import LatentBank, distances, thumbnails
from unblemish.runtime.solvers.protocol import Float

PAPER_CANDIDATES = 1000
# Opening a bundle may generate candidates for about so much work (a second on one core).
_BUDGET_FLOP = 20e9


@dataclass(frozen=True)
class Starts:
    """Latents to begin with, (T, k, n), and whether they are known to lie near the solution."""

    z: Float
    near: bool = False


class Starter:
    """Start values of a bundle: previous frame, encoder, and the best of many random latents.

    Args:
        paper: one start, the best of `drawn` by mean squared error, and nothing else.
        starts: how many starts each image gets otherwise.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        *,
        paper: bool,
        starts: int,
        drawn: int = PAPER_CANDIDATES,
    ) -> None:
        self._settings = manifest.rgi
        self._size = manifest.model.latent_size
        self._engines = engines
        self._paper = paper
        self.starts = 1 if paper else starts
        count = drawn if paper else candidates(manifest)
        self.bank: LatentBank | None = None
        if paper or self._settings.start != "zero":
            self.bank = LatentBank.build(engines.generate, count, self._size, batch=engines.batch)

    def choose(self, images: Float, previous: Float | None, lam: float) -> Starts:
        """Starts for images (T, C, h, w); `previous` holds latents (T, n) of the frame before.

        The previous frame's latents are near where they fit better than any random candidate, and
        are then the only start; otherwise they compete with the others.
        """
        began = time.perf_counter()
        weights = np.full(len(images), lam, np.float32)
        known = [] if self._paper else self._known(images, previous)
        if previous is not None and known and self._fits(images, known[0], weights):
            starts = Starts(known[0][:, None], near=True)
        elif self.bank is None:
            known = known or [np.zeros((len(images), self._size), np.float32)]
            starts = Starts(np.stack(known, axis=1))
        else:
            random = self.bank.nearest(images, max(self.starts - len(known), 1), weights)
            starts = Starts(np.concatenate([*(z[:, None] for z in known), random], axis=1))
        self._engines.generator.watch.add("start", began)
        return starts

    def _known(self, images: Float, previous: Float | None) -> list[Float]:
        if previous is not None:
            return [previous]
        return [self._engines.encode(images)] if self._settings.start == "encoder" else []

    def _fits(self, images: Float, z: Float, lam: Float) -> bool:
        """Whether the images of z fit better than the bank's best, by the robust loss."""
        if self.bank is None:
            return False
        own, wanted = thumbnails(self._engines.generate(z)), thumbnails(images)
        for mine, image, weight in zip(own, wanted, lam, strict=True):
            _, best = distances(self.bank.thumbnails, image, float(weight))
            _, ours = distances(mine[None], image, float(weight))
            if not ours[0] < best.min():
                return False
        return True


def candidates(manifest: Manifest) -> int:
    """How many random latents are worth their time: at least the settings' number, at most 1,000.

    More candidates find better minima at every frame; they cost one pass each, when opened.
    """
    flops = manifest.graphs["generator_forward"].flops
    least = manifest.rgi.candidates
    affordable = int(_BUDGET_FLOP / flops) if flops else least
    return int(np.clip(affordable, least, max(PAPER_CANDIDATES, least)))
