"""Weights of a resampling along one axis, as OpenCV has them: area where it shrinks, else cubic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_A = -0.75  # of OpenCV's cubic
_NEGLIGIBLE = 1e-3  # shares of an element that OpenCV leaves out


@dataclass(frozen=True)
class Filter:
    """out[j] = sum over k of weights[j, k] in[start[j] + k]; all taps lie inside.

    Args:
        start: (n,) int32. weights: (n, taps) float32. clips: whether it may overshoot.
    """

    start: NDArray[np.int32]
    weights: NDArray[np.float32]
    clips: bool


def axis_filter(source: int, target: int) -> Filter | None:
    """The filter from `source` to `target` elements; None where nothing is to be done.

    Source: OpenCV, INTER_AREA and INTER_CUBIC of `resize`; held to it by tests.
    """
    if source == target:
        return None
    dense = _area(source, target) if target < source else _cubic(source, target)
    return _packed(dense, clips=target > source)


def _area(source: int, target: int) -> NDArray[np.float64]:
    """Mean over the elements that one covers, by their shares."""
    scale = source / target
    dense = np.zeros((target, source))
    for j in range(target):
        begin, end = j * scale, min((j + 1) * scale, source)
        cell = min(scale, source - begin)
        for i in range(int(begin), min(int(np.ceil(end)), source)):
            share = min(end, i + 1) - max(begin, i)
            if share > _NEGLIGIBLE:
                dense[j, i] = share / cell
    return dense


def _cubic(source: int, target: int) -> NDArray[np.float64]:
    """Four elements around each, the border repeated."""
    dense = np.zeros((target, source))
    for j in range(target):
        at = float(np.float32((j + 0.5) * (source / target) - 0.5))
        left = int(np.floor(at))
        for k, weight in enumerate(_cubic_weights(at - left)):
            dense[j, min(max(left - 1 + k, 0), source - 1)] += weight
    return dense


def _cubic_weights(x: float) -> tuple[float, float, float, float]:
    far = ((_A * (x + 1) - 5 * _A) * (x + 1) + 8 * _A) * (x + 1) - 4 * _A
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    after = ((_A + 2) * (1 - x) - (_A + 3)) * (1 - x) * (1 - x) + 1
    return far, near, after, 1.0 - far - near - after


def _packed(dense: NDArray[np.float64], *, clips: bool) -> Filter:
    """Rows of as many taps as the longest needs."""
    used = dense != 0
    first = used.argmax(axis=1)
    last = dense.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
    taps = int((last - first).max()) + 1
    start = np.minimum(first, dense.shape[1] - taps)
    columns = start[:, None] + np.arange(taps)
    weights = np.take_along_axis(dense, columns, axis=1)
    return Filter(start.astype(np.int32), weights.astype(np.float32), clips)
