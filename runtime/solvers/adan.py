"""Adan on pixels, with gradients shared between neighbours and a step size per component."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.api import Kernels
from unblemish.runtime.solvers.protocol import Bool, Double, Float, Index, Variables


@dataclass(frozen=True)
class Sharing:
    """How gradients are shared: eqs. (13) and (14). Radius 0 shares nothing.

    Args:
        radius: k_s, px. sigma_space: sigma_0, px^2. sigma_colour: sigma_1, squared units.
    """

    radius: int
    sigma_space: float
    sigma_colour: float


@dataclass(frozen=True)
class Pixels:
    """What is fixed of a batch of images under search, items in front.

    Args:
        x: (N, C, H, W) inspected images, in the unit of the variables.
        free: (N, 1, H, W) uint8, the pixels that may move.
        rate: (N,) float32, what is divided by |x - n| in eq. (15).
        clip: largest component of the shared gradient, one for all.
        lower, upper: valid range of the variables.
    """

    x: Float
    free: NDArray[np.uint8]
    rate: Float
    clip: float
    lower: float
    upper: float

    def take(self, rows: Index) -> Pixels:
        """These items only."""
        return replace(self, x=self.x[rows], free=self.free[rows], rate=self.rate[rows])


@dataclass
class AdanState:
    """Images n, moments of the shared gradient, its last value, steps so far; `failed` (B,)."""

    query: Variables
    first: Float
    slope: Float
    second: Float
    previous: Float
    shared: Float
    pixels: Pixels
    steps: int
    failed: Bool


@dataclass(frozen=True)
class Adan:
    """Adan (Xie et al. 2024) along shared gradients; betas as recommended: 0.98, 0.92, 0.99.

    One step: g = clip(share(gradient)), the moments of Adan, then per component
    n <- clip(n - rate / max(|x - n|, floor) * direction, lower, upper), on free pixels only.

    Args:
        kernels: carry out sharing and update.
        pixels: of the images.
        sharing: None shares nothing (plain Adan).
        floor: smallest |x - n| that a step is divided by, in the unit of the variables.
    Source: seed 003, section III-D, eqs. (13)-(15). Adan's own step would be the rate.
    """

    kernels: Kernels
    pixels: Pixels
    sharing: Sharing | None
    floor: float

    def init(self, start: Variables) -> AdanState:
        """See `Solver.init`; one group of variables, (B, C, H, W)."""
        query = np.array(start[0], np.float32)
        first, slope, second, previous, shared = (np.zeros_like(query) for _ in range(5))
        failed = np.zeros(len(query), np.bool_)
        return AdanState((query,), first, slope, second, previous, shared, self.pixels, 0, failed)

    def step(self, state: AdanState, value: Double, gradient: Variables) -> AdanState:
        """See `Solver.step`. The moments have no way round a failed row: it stays failed."""
        state.steps += 1
        pixels, direction = state.pixels, self._shared(state, gradient[0])
        self.kernels.adan(
            state.query[0],
            pixels.x,
            direction,
            state.first,
            state.slope,
            state.second,
            state.previous,
            pixels.free,
            step=state.steps,
            rate=pixels.rate,
            clip=pixels.clip,
            lower=pixels.lower,
            upper=pixels.upper,
            floor=self.floor,
        )
        state.failed |= ~np.isfinite(value)
        return state

    def done(self, state: AdanState) -> Bool:
        """See `Solver.done`."""
        return state.failed

    def moved(self, state: AdanState) -> Bool:
        """See `Solver.moved`."""
        return np.ones_like(state.failed)

    def restart(self, state: AdanState, rows: Bool) -> AdanState:
        """See `Solver.restart`: the moments live on."""
        return state

    def take(self, state: AdanState, rows: Index) -> AdanState:
        """See `Solver.take`."""
        return AdanState(
            (state.query[0][rows],),
            state.first[rows],
            state.slope[rows],
            state.second[rows],
            state.previous[rows],
            state.shared[rows],
            state.pixels.take(rows),
            state.steps,
            state.failed[rows],
        )

    def _shared(self, state: AdanState, gradient: Float) -> Float:
        """Eq. (13). The weights are computed on the way: reading a table of them takes longer."""
        if self.sharing is None or not self.sharing.radius:
            return gradient
        self.kernels.share_gradient_direct(
            gradient,
            state.pixels.x,
            radius=self.sharing.radius,
            sigma_space=self.sharing.sigma_space,
            sigma_colour=self.sharing.sigma_colour,
            shared=state.shared,
        )
        return state.shared
