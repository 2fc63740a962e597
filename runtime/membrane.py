"""The smoothest surface over a hole: what is known at its rim, carried inwards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

_COARSEST = 8  # px: holes within so small a window are solved without a coarser start
_TOLERANCE = 1e-4  # of the known range: of a pixel to the mean around it, times the neighbours
_MOST_STEPS = 400


def extend(values: Float, hole: Bool, start: Float | None = None) -> Float:
    """Replace values in a hole by the harmonic surface through the values around it.

    In the hole every value is the mean of its neighbours above, below, left and right, those beyond
    the edge of the image left out; that is the minimum of the sum of squared differences between
    neighbours. Conjugate gradients on the hole's pixels alone, from the solution at half the size.

    Args:
        values: (..., h, w); what they are in the hole does not count. hole: as values, or
            broadcast to their shape.
        start: a guess, as values; None for that of half the size.
    Returns: a copy; zero in planes that are all hole.
    """
    out = np.array(values, np.float32)
    where = np.broadcast_to(hole, out.shape)
    window = _window(where)
    if window is None:
        return out
    inside = where[window]
    guess = np.where(inside, 0, out[window]) if start is None else start[window]
    if start is None and max(inside.shape[-2:]) > _COARSEST:
        guess = _coarse(out[window], inside)
    out[window] = _relaxed(out[window], inside, guess)
    out[where & where.all(axis=(-2, -1), keepdims=True)] = 0
    return out


def roughness(values: Float, hole: Bool) -> NDArray[np.float64]:
    """Sum of squared differences between neighbours of which one at least is in the hole.

    Args:
        values: (B, C, h, w). hole: broadcast to that shape.
    Returns: (B,).
    """
    where = np.broadcast_to(hole, values.shape)
    total = np.zeros(len(values))
    for axis in (-2, -1):
        after, before = _halves(values.ndim, axis)
        apart = (values[after] - values[before]) * (where[after] | where[before])
        total += np.square(apart).sum(axis=(1, 2, 3), dtype=np.float64)
    return total


def _window(where: Bool) -> tuple[Any, slice, slice] | None:
    """Index of the pixels of the hole and their neighbours; None without a hole."""
    planes = where.reshape(-1, *where.shape[-2:])
    slices = []
    for others in ((0, 2), (0, 1)):
        places = np.flatnonzero(planes.any(axis=others))
        if not places.size:
            return None
        slices.append(slice(max(int(places[0]) - 1, 0), int(places[-1]) + 2))
    return (..., slices[0], slices[1])


def _relaxed(values: Float, hole: Bool, guess: Float) -> Float:
    """Conjugate gradients for (number of neighbours) u - (sum of neighbours) = 0 in the hole."""
    u = np.where(hole, guess, values)
    counts = _neighbours(np.ones(values.shape[-2:], np.float32))
    residual = (_neighbours(u) - counts * u) * hole
    known = np.where(hole, 0, values)
    enough = _TOLERANCE * max(float(np.ptp(known)), 1e-6)
    direction, size = residual.copy(), _dot(residual, residual)
    for _ in range(_MOST_STEPS):
        if np.abs(residual).max() <= enough:
            break
        bent = (counts * direction - _neighbours(direction)) * hole
        step = size / np.maximum(_dot(direction, bent), 1e-30)
        u += step * direction
        residual -= step * bent
        before, size = size, _dot(residual, residual)
        direction = residual + size / np.maximum(before, 1e-30) * direction
    return u


def _coarse(values: Float, hole: Bool) -> Float:
    """The solution at half the size, where a pixel is known if any of its four is, repeated."""
    known = _halved((~hole).astype(np.float32))
    mean = _halved(np.where(hole, np.float32(0), values)) / np.maximum(known, np.float32(1e-6))
    small = extend(mean.astype(np.float32, copy=False), known == 0)
    height, width = values.shape[-2:]
    return small.repeat(2, axis=-2).repeat(2, axis=-1)[..., :height, :width]


def _halved(values: Float) -> Float:
    """Mean of blocks of 2 x 2; an odd side is continued by zeros."""
    height, width = values.shape[-2:]
    odd = [(0, 0)] * (values.ndim - 2) + [(0, height % 2), (0, width % 2)]
    even = np.pad(values, odd)
    blocks = even.reshape(*even.shape[:-2], even.shape[-2] // 2, 2, even.shape[-1] // 2, 2)
    return np.asarray(blocks.mean(axis=(-3, -1)), np.float32)


def _neighbours(values: Float) -> Float:
    """Sum of the four neighbours, 0 beyond the edge."""
    out = np.zeros_like(values)
    for axis in (-2, -1):
        after, before = _halves(values.ndim, axis)
        out[after] += values[before]
        out[before] += values[after]
    return out


def _halves(axes: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Indices of all but the first, and all but the last, along one axis."""
    after, before = [slice(None)] * axes, [slice(None)] * axes
    after[axis], before[axis] = slice(1, None), slice(None, -1)
    return tuple(after), tuple(before)


def _dot(a: Float, b: Float) -> Float:
    return np.asarray((a * b).sum(axis=(-2, -1), keepdims=True), np.float32)
