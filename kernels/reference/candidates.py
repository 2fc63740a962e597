"""The nearest rows of a bank, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]
Int = NDArray[np.int32]


def top_candidates(queries: NDArray[Any], bank: NDArray[Any], count: int) -> tuple[Int, Double]:
    """Return index and distances, (M, count) each, of `Kernels.top_candidates`."""
    index = np.empty((len(queries), count), np.int32)
    distances = np.empty((len(queries), count))
    rows = bank.astype(np.float64)
    for number, query in enumerate(queries):
        each = np.square(query - rows).sum(axis=1)
        index[number] = np.argsort(each, kind="stable")[:count]
        distances[number] = each[index[number]]
    return index, distances


def nearest_candidate(
    f: NDArray[Any], bank: NDArray[Any], candidates: NDArray[Any]
) -> tuple[Double, Double, Int]:
    """Return scores, cotangent and chosen of `Kernels.nearest_candidate`."""
    scores, cotangent = np.zeros(f.shape[:2]), np.zeros(f.shape)
    chosen = np.full(f.shape[:2], -1, np.int32)
    for at in zip(*np.nonzero(candidates[..., 0] >= 0), strict=True):
        listed = candidates[at]
        ends = np.nonzero(listed < 0)[0]
        listed = listed[: ends[0]] if len(ends) else listed
        d = f[at].astype(np.float64) - bank[listed]
        distances = np.square(d).sum(axis=1)
        nearest = int(distances.argmin())
        scores[at], cotangent[at], chosen[at] = distances[nearest], 2 * d[nearest], listed[nearest]
    return scores, cotangent, chosen
