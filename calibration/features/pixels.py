"""The pixel prior: a mixture of Gaussians of the intensities of normal pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Mixture
from unblemish.calibration.features.fitter import Float
from unblemish.errors import CalibrationError, MissingDependencyError

Double = NDArray[np.float64]

COMPONENTS = (1, 2, 3, 5, 8)
PIXELS = 10_000
# Variance that the camera's rounding and noise have at least: one level of 8 bits. Without it a
# synthetic image of one colour would give an infinite precision.
FLOOR = (1.0 / 255.0) ** 2
# Components that explain fewer pixels than this share are what the prior left unused.
SMALLEST_SHARE = 1e-3


class PixelSampler:
    """A random sample of the pixels of normal frames, the same number from each.

    Args:
        images: how many frames will come.
        total: pixels to keep in all.
    """

    def __init__(self, images: int, *, total: int = PIXELS, seed: int = 0) -> None:
        self._each = max(-(-total // max(images, 1)), 1)
        self._rng = np.random.default_rng([seed, images])
        self._rows: list[Float] = []

    def update(self, unit: Float) -> None:
        """Draw from a frame, (H, W, C) float32 in [0, 1]."""
        pixels = unit.reshape(-1, unit.shape[2])
        self._rows.append(pixels[self._rng.integers(len(pixels), size=self._each)])

    def pixels(self) -> Float:
        """The sample, (n, C) float32. Raises: CalibrationError where no frame was given."""
        if not self._rows:
            raise CalibrationError("no normal image was usable, so there are no pixels to learn.")
        return np.concatenate(self._rows)


def fit_mixtures(
    pixels: Float, components: Sequence[int] = COMPONENTS, *, seed: int = 0
) -> tuple[Mixture, ...]:
    """Fit a mixture of up to so many Gaussians for every entry of `components`.

    Variational inference leaves components without pixels unused; they are dropped, because
    eq. (10) takes the minimum over all components, whatever their weight. A mixture that ends up
    with as many components as an earlier one is left out.

    Args:
        pixels: (n, C) in [0, 1].
    Returns: mixtures by growing number of Gaussians, in [0, 1] intensity.
    Raises: MissingDependencyError where scikit-learn is not installed.
    Source: seed 003, eq. (9) and [44].
    """
    found: dict[int, Mixture] = {}
    for count in sorted(set(components)):
        mixture = _fit(pixels, min(count, len(pixels)), seed)
        found.setdefault(len(mixture.weights), mixture)
    return tuple(found[count] for count in sorted(found))


def _fit(pixels: Float, count: int, seed: int) -> Mixture:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import BayesianGaussianMixture
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "fit", "fitting the pixel prior") from error
    model = BayesianGaussianMixture(
        n_components=count, reg_covar=FLOOR, max_iter=100, random_state=seed
    )
    with warnings.catch_warnings():
        # One colour gives k-means fewer clusters than asked for; an optimum not quite reached is
        # a prior nonetheless.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(pixels.astype(np.float64))
    weights: Double = np.asarray(model.weights_)
    order = [int(q) for q in np.argsort(-weights) if weights[q] >= SMALLEST_SHARE]
    kept = weights[order] / weights[order].sum()
    return Mixture.model_validate(
        {
            "means": np.asarray(model.means_)[order].tolist(),
            "precisions": _bounded(np.asarray(model.precisions_)[order]).tolist(),
            "weights": kept.tolist(),
        }
    )


def _bounded(precisions: Double) -> Double:
    """Precisions (Q, C, C) whose covariances keep the floor; the posterior misses it a little."""
    values, vectors = np.linalg.eigh(precisions)
    bounded: Double = (vectors * np.minimum(values, 1.0 / FLOOR)[:, None, :]) @ np.swapaxes(
        vectors, 1, 2
    )
    return bounded
