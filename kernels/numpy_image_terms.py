"""The terms and the update of F2PAD in NumPy; see `ImageTerms`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from unblemish.kernels import image_checks as checks
from unblemish.kernels.image_terms import Byte, Double, Float, Half


class NumpyImageTerms:
    """`ImageTerms`, several passes over memory each."""

    @np.errstate(all="ignore")
    def total_variation(self, n: Float, weight: Float, *, gradient: Float, value: Double) -> None:
        """See `ImageTerms`."""
        checks.total_variation(n, weight, gradient=gradient, value=value)
        for axis in (2, 3):
            if n.shape[axis] < 2:
                continue
            low, high = _neighbours(axis)
            d = n[high] - n[low]
            norm = np.sqrt(np.einsum("bchw,bchw->bhw", d, d))[:, None]
            value += weight * norm.sum(axis=(1, 2, 3), dtype=np.float64)
            d *= np.where(norm == 0, np.float32(0), weight.reshape(-1, 1, 1, 1) / norm)
            gradient[high] += d
            gradient[low] -= d

    @np.errstate(all="ignore")
    def log_penalty(
        self,
        x: Float,
        n: Float,
        weight: Float,
        free: Byte,
        *,
        epsilon: float,
        gradient: Float,
        value: Double,
    ) -> None:
        """See `ImageTerms`."""
        checks.log_penalty(x, n, weight, free, epsilon=epsilon, gradient=gradient, value=value)
        a = n - x
        squared = np.einsum("bchw,bchw->bhw", a, a)[:, None]
        norm = np.sqrt(squared)
        root = np.sqrt(squared + np.float32(epsilon))
        counts = free != 0
        penalty = np.log((root + norm).astype(np.float64), where=counts, out=np.zeros(norm.shape))
        value += weight * penalty.sum(axis=(1, 2, 3))
        slope = weight.reshape(-1, 1, 1, 1) / (norm * root)
        gradient += np.where(counts, np.where(norm == 0, np.float32(0), slope) * a, np.float32(0))

    @np.errstate(all="ignore")
    def mixture_prior(
        self,
        n: Float,
        means: Float,
        precisions: Float,
        weight: Float,
        free: Byte,
        *,
        gradient: Float,
        value: Double,
    ) -> None:
        """See `ImageTerms`."""
        checks.mixture_prior(n, means, precisions, weight, free, gradient=gradient, value=value)
        best = np.full((len(n), *n.shape[2:]), np.nan, np.float32)
        slope = np.zeros_like(n)
        for mean, precision in zip(means, precisions, strict=True):
            d = n - mean[:, None, None]
            half = np.einsum("cd,bdhw->bchw", precision, d)
            distance = np.einsum("bchw,bchw->bhw", d, half)
            nearer = ~(best <= distance)  # NaN is nearer
            best = np.where(nearer, distance, best)
            slope = np.where(nearer[:, None], half, slope)
        counts = free != 0
        value += weight * np.where(counts[:, 0], best, 0).sum(axis=(1, 2), dtype=np.float64)
        gradient += (2 * weight).reshape(-1, 1, 1, 1) * np.where(counts, slope, np.float32(0))

    @np.errstate(all="ignore")
    def sharing_weights(
        self, x: Float, *, radius: int, sigma_space: float, sigma_colour: float, weights: Half
    ) -> None:
        """See `ImageTerms`."""
        checks.sharing_weights(
            x, radius=radius, sigma_space=sigma_space, sigma_colour=sigma_colour, weights=weights
        )
        weights[...] = 0
        total = np.zeros((len(x), *x.shape[2:]), np.float32)
        for index, here, there, w in _weighed(x, radius, sigma_space, sigma_colour):
            del there
            weights[(slice(None), index, *here)] = w
            total[(slice(None), *here)] += w
        weights /= total[:, None]

    @np.errstate(all="ignore")
    def share_gradient(self, gradient: Float, weights: Half, *, radius: int, shared: Float) -> None:
        """See `ImageTerms`."""
        checks.share_gradient(gradient, weights, radius=radius, shared=shared)
        shared[...] = 0
        for index, here, there, _ in _offsets(gradient.shape[2:], radius):
            w = weights[(slice(None), index, *here)].astype(np.float32)
            shared[(..., *here)] += w[:, None] * gradient[(..., *there)]

    @np.errstate(all="ignore")
    def share_gradient_direct(
        self,
        gradient: Float,
        x: Float,
        *,
        radius: int,
        sigma_space: float,
        sigma_colour: float,
        shared: Float,
    ) -> None:
        """See `ImageTerms`."""
        checks.share_gradient_direct(
            gradient,
            x,
            radius=radius,
            sigma_space=sigma_space,
            sigma_colour=sigma_colour,
            shared=shared,
        )
        shared[...] = 0
        total = np.zeros((len(x), 1, *x.shape[2:]), np.float32)
        for _, here, there, w in _weighed(x, radius, sigma_space, sigma_colour):
            shared[(..., *here)] += w[:, None] * gradient[(..., *there)]
            total[(..., *here)] += w[:, None]
        shared /= total

    @np.errstate(all="ignore")
    def adan(
        self,
        n: Float,
        x: Float,
        g: Float,
        first: Float,
        slope: Float,
        second: Float,
        previous: Float,
        free: Byte,
        *,
        step: int,
        rate: Float,
        clip: float,
        lower: float,
        upper: float,
        floor: float,
        beta1: float = 0.98,
        beta2: float = 0.92,
        beta3: float = 0.99,
        eps: float = 1e-8,
    ) -> None:
        """See `ImageTerms`."""
        checks.adan(
            n,
            x,
            g,
            first,
            slope,
            second,
            previous,
            free,
            step=step,
            rate=rate,
            clip=clip,
            lower=lower,
            upper=upper,
            floor=floor,
            beta1=beta1,
            beta2=beta2,
            beta3=beta3,
            eps=eps,
        )
        g = np.clip(g, -np.float32(clip), np.float32(clip))
        d = g - previous if step > 1 else np.zeros_like(g)
        first += np.float32(1 - beta1) * (g - first)
        slope += np.float32(1 - beta2) * (d - slope)
        ahead = g + np.float32(beta2) * d
        second += np.float32(1 - beta3) * (ahead * ahead - second)
        previous[...] = g
        up = first / np.float32(1 - beta1**step)
        up += np.float32(beta2 / (1 - beta2**step)) * slope
        up /= np.sqrt(second / np.float32(1 - beta3**step)) + np.float32(eps)
        up *= rate.reshape(-1, 1, 1, 1) / np.maximum(np.abs(x - n), np.float32(floor))
        moved = np.clip(n - up, np.float32(lower), np.float32(upper))
        np.copyto(n, moved, where=free != 0)


Window = tuple[slice, slice]


def _neighbours(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    low = [slice(None)] * 4
    high = [slice(None)] * 4
    low[axis], high[axis] = slice(None, -1), slice(1, None)
    return tuple(low), tuple(high)


def _offsets(
    size: tuple[int, ...], radius: int
) -> Iterator[tuple[int, Window, Window, tuple[int, int]]]:
    """Index of a neighbour, pixels that have it, the neighbours themselves, and the offset."""
    height, width = size
    side = 2 * radius + 1
    for index in range(side * side):
        dy, dx = index // side - radius, index % side - radius
        if abs(dy) >= height or abs(dx) >= width:
            continue
        here = _span(dy, height), _span(dx, width)
        there = _span(-dy, height), _span(-dx, width)
        yield index, here, there, (dy, dx)


def _span(offset: int, length: int) -> slice:
    return slice(max(0, -offset), length - max(0, offset))


def _weighed(
    x: Float, radius: int, sigma_space: float, sigma_colour: float
) -> Iterator[tuple[int, Window, Window, Float]]:
    """As `_offsets`, with the weights (B, h, w) before they are normalised."""
    for index, here, there, (dy, dx) in _offsets(x.shape[2:], radius):
        d = x[(..., *there)] - x[(..., *here)]
        w = np.exp(np.einsum("bchw,bchw->bhw", d, d) * np.float32(-1 / sigma_colour))
        w *= np.float32(math.exp(-(dy * dy + dx * dx) / sigma_space))
        yield index, here, there, np.asarray(w, np.float32)
