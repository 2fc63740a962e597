"""Greedy k-centre selection: few features that leave no other one far away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.features.fitter import Advance, Float
from unblemish.errors import ConfigError
from unblemish.kernels.k_centre import k_centre

_BLOCK = 8192  # rows projected at once
_SAMPLE = 16384  # rows that the leading directions are taken from
_REPORT = 64


def coreset(
    features: Float,
    count: int,
    *,
    seed: int,
    project: int | None = 128,
    progress: Advance | None = None,
    threads: int | None = None,
) -> NDArray[np.intp]:
    """Choose `count` rows, each the farthest from those chosen before it.

    The greedy choice is at most twice as far from the farthest row as the best choice is. Distances
    are taken after a random projection, which keeps them within a few per cent; on the projected
    rows the choice is exact. These are turned so that their leading numbers differ most: distances
    stay as they are, and most rows are told apart by those numbers alone.

    Args:
        features: (N, c) float32; may lie on disk, it is read once, and a sample of it twice.
        count: rows to choose, 1 to N.
        seed: of the projection and of the first row.
        project: dimensions after the projection; None, or as many as c or more, for none.
        progress: called with ('coreset', rows chosen, count).
        threads: None for the processors available.
    Returns: (count,) rows of `features`, in the order chosen.
    Raises: ConfigError where `count`, `project` or `threads` is out of range, or a feature is not
        finite.
    Source: Roth et al., PatchCore, algorithm 1; Gonzalez, 'Clustering to minimize the maximum
        intercluster distance', 1985.
    """
    total = len(features)
    if not 1 <= count <= total:
        raise ConfigError(f"a coreset of {total} features has 1 to {total} of them, not {count}.")
    if project is not None and project < 1:
        raise ConfigError(f"a coreset is projected to 1 dimension or more, not {project}.")
    rng = np.random.default_rng(seed)
    rows = _projected(features, project, rng)
    chosen = np.empty(count, np.intp)
    chosen[0] = rng.integers(total)
    search = k_centre(rows, int(chosen[0]), threads)
    for done in range(1, count, _REPORT):
        part = slice(done, min(done + _REPORT, count))
        chosen[part] = search.choose(part.stop - part.start)
        if progress is not None:
            progress("coreset", part.stop, count)
    if progress is not None and count == 1:
        progress("coreset", 1, 1)
    return chosen


def _projected(features: Float, project: int | None, rng: np.random.Generator) -> Float:
    """Rows (N, d) to measure distances in, the leading directions first.

    Around their middle, so that little is lost where squared distances come from products.
    """
    channels = features.shape[1]
    if project is None or project >= channels:
        matrix = np.eye(channels)
    else:
        matrix = rng.standard_normal((channels, project)).astype(np.float32) / np.sqrt(project)
    width = matrix.shape[1]
    out = np.empty((len(features), width), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # refused below, in words
        sample = np.asarray(features[:: -(-len(features) // _SAMPLE)], np.float64) @ matrix
        centre = sample.mean(axis=0)
        sample -= centre
        products = sample.T @ sample
    if not np.isfinite(products).all():
        raise ConfigError("features hold NaN or infinite values; a coreset needs finite ones.")
    directions = np.linalg.eigh(products)[1][:, ::-1]
    turned = np.asarray(matrix @ directions, np.float32)
    middle = np.asarray(centre @ directions, np.float32)
    for first in range(0, len(features), _BLOCK):
        part = slice(first, first + _BLOCK)
        out[part] = features[part] @ turned - middle
    return out
