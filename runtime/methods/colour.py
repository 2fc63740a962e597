"""How far the colours of a frame lie from those of normal parts: the pixel prior as a detector.

Features of a network trained on photographs tell textures apart and care little for colours. What
has the texture of a normal part and a colour that no normal part has is seen by eq. (10) alone.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.runtime.methods.decomposition import Prior

Float = NDArray[np.float32]

_SIGMA = 1.5  # model px: single odd pixels are noise


def colour_maps(images: Float, prior: Prior, preprocess: Preprocess) -> Float:
    """Smoothed distances of the colours of model images.

    Args:
        images: (B, C, h, w) in model intensities. prior: in [0, 1] intensity.
    Returns: (B, h, w) float32, squared Mahalanobis distances to the nearest Gaussian.
    """
    span = np.float32(preprocess.high - preprocess.low)
    unit = (images - np.float32(preprocess.low)) / span
    return np.stack([cv2.GaussianBlur(prior.distances(x), (0, 0), _SIGMA) for x in unit])
