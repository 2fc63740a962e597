"""One tiny run of every family of kernels, with results that can be worked out by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from unblemish.kernels import Kernels


def probe_kernels() -> tuple[str, str | None]:
    """Name of the kernels in use, and None where they work, else the reason."""
    from unblemish.kernels import default_kernels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        kernels = default_kernels()
    try:
        wrong = [name for name, probe in PROBES.items() if not probe(kernels)]
    except Exception as error:  # a library of another version may fail with whatever it likes
        return kernels.name, f"{type(error).__name__}: {error}"
    return kernels.name, f"wrong numbers from {', '.join(wrong)}" if wrong else None


def _closed_form(kernels: Kernels) -> bool:
    """With lambda = 1 mask and cotangent are 1/2 where r = 1, and 0 and 2 r where r = 0.1."""
    x, g = np.zeros((1, 1, 1, 2), np.float32), np.array([[[[1.0, 0.1]]]], np.float32)
    mask, cotangent = np.empty_like(x), np.empty_like(x)
    one = np.ones(1, np.float32)
    kernels.rgi_closed_form(x, g, one, one, mask=mask, cotangent=cotangent, objective=np.empty(1))
    return np.allclose(mask, [[[[0.5, 0.0]]]]) and np.allclose(cotangent, [[[[0.5, 0.2]]]])


def _total_variation(kernels: Kernels) -> bool:
    """A step of 3 pulls both of its sides with 1."""
    n, gradient, value = (
        np.array([[[[0, 3]]]], np.float32),
        np.zeros((1, 1, 1, 2), "f"),
        np.zeros(1),
    )
    kernels.total_variation(n, np.ones(1, np.float32), gradient=gradient, value=value)
    return np.allclose(gradient, [[[[-1, 1]]]]) and np.allclose(value, 3)


def _sharing(kernels: Kernels) -> bool:
    """Weights that sum to 1 leave an even gradient as it is."""
    g, x = np.full((1, 1, 3, 4), 2, np.float32), np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    shared = np.empty_like(g)
    kernels.share_gradient_direct(g, x, radius=1, sigma_space=1, sigma_colour=9, shared=shared)
    return np.allclose(shared, 2, atol=1e-5)


def _dssim(kernels: Kernels) -> bool:
    """Of one pixel, 1 and 3: only luminance differs, SSIM = (6 + C1) / (10 + C1), C1 = 0.0004."""
    x, g = np.full((1, 1, 1, 1), 1, np.float32), np.full((1, 1, 1, 1), 3, np.float32)
    found, one, value = np.empty_like(x), np.ones(1, np.float32), np.empty(1)
    kernels.dssim(
        x,
        g,
        one,
        data_range=2.0,
        dissimilarity=found,
        direct=None,
        cotangent=None,
        objective=value,
    )
    return np.allclose([found.item(), value.item()], 2 / 10.0004, rtol=1e-4)


def _mahalanobis(kernels: Kernels) -> bool:
    """W = ((1, 0), (0, 2)) and d = (1, 1): s = 1 + 4, and the slope is 2 (1, 4)."""
    f, mean = np.ones((1, 1, 2), np.float32), np.zeros((1, 2), np.float32)
    w, cells = np.array([[1, 0, 2]], np.float32), np.zeros((1, 1), np.int32)
    scores, cotangent = np.empty((1, 1), np.float32), np.empty_like(f)
    kernels.mahalanobis(f, mean, w, cells, scores=scores, cotangent=cotangent)
    return np.allclose(scores, 5) and np.allclose(cotangent, [[[2, 8]]])


def _search(kernels: Kernels) -> bool:
    """Of 0, 3 and 9 the ones next to 4 are 3 and 0."""
    bank, index = np.array([[0], [3], [9]], np.float32), np.empty((1, 2), np.int32)
    distances = np.empty((1, 2), np.float32)
    kernels.top_candidates(np.full((1, 1), 4, np.float32), bank, index=index, distances=distances)
    return index.tolist() == [[1, 0]] and np.allclose(distances, [[1, 16]])


def _coreset(kernels: Kernels) -> bool:
    """From 0 on, 5 is the farthest of 0, 1, 5 and 3, and then 3."""
    from unblemish.kernels.k_centre import k_centre

    rows = np.array([[0], [1], [5], [3]], np.float32)
    return bool((k_centre(rows, 0, 1).choose(2) == [2, 3]).all())


PROBES: dict[str, Callable[[Kernels], bool]] = {
    "rgi_closed_form": _closed_form,
    "total_variation": _total_variation,
    "share_gradient_direct": _sharing,
    "dssim": _dssim,
    "mahalanobis": _mahalanobis,
    "top_candidates": _search,
    "k_centre": _coreset,
}
