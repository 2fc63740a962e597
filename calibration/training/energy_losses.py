"""Losses of autoencoders, L_r and its company, in torch. Intensities are in [0, 1]."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from unblemish.export.models.autoencoder import Reconstruction

RADIUS, SIGMA = 5, 1.5  # of the Gaussian window, pixels
C1, C2 = 0.01**2, 0.03**2  # for intensities of range 1


@functools.lru_cache(maxsize=8)
def _blur_matrix(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(side, side): row i is the window around pixel i, mirrored at the border (edge repeated)."""
    taps = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    matrix = np.zeros((side, side))
    for shift, tap in zip(range(-RADIUS, RADIUS + 1), taps / taps.sum(), strict=True):
        place = np.arange(side) + shift
        place = place % (2 * side)
        np.add.at(matrix, (np.arange(side), np.minimum(place, 2 * side - 1 - place)), tap)
    return torch.from_numpy(matrix).to(device, dtype)


def _blurred(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    down = _blur_matrix(height, images.device, images.dtype)
    across = _blur_matrix(width, images.device, images.dtype)
    blurred: Tensor = torch.matmul(torch.matmul(down, images), across.T)
    return blurred


def dssim_map(image: Tensor, other: Tensor) -> Tensor:
    """(1 - SSIM) / 2 of every pixel, per channel.

    With window means m, variances s^2 and covariance s_xy under a Gaussian window of 11 x 11
    pixels, standard deviation 1.5:

        SSIM = (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2))

    Args:
        image, other: (batch, C, H, W), range 1.
    Returns: as `image`; 0 where they agree, at most 1.
    Source: Wang et al. 2004; seed 002, section 4.1.
    """
    stacked = torch.stack([image, other, image * image, other * other, image * other])
    m_x, m_y, xx, yy, xy = _blurred(stacked)
    luminance = (2 * m_x * m_y + C1) / (m_x.square() + m_y.square() + C1)
    structure = (2 * (xy - m_x * m_y) + C2) / (xx - m_x.square() + yy - m_y.square() + C2)
    dissimilar: Tensor = 0.5 * (1 - luminance * structure)
    return dissimilar


def gaussian_terms(image: Tensor, reconstruction: Tensor, log_scale: Tensor) -> Tensor:
    """(x - y)^2 / (2 g^2) + log g of every element, g = exp(log_scale); as `image`."""
    scaled = (image - reconstruction) * torch.exp(-log_scale)
    return 0.5 * scaled.square() + log_scale


def reconstruction_loss(
    loss: str, image: Tensor, found: Reconstruction, log_gamma: Tensor | None = None
) -> Tensor:
    """L_r of every image: what the energy of the bundle holds, and its stop criterion compares.

    l2: sum of (x - y)^2 over elements. dssim: sum of (1 - SSIM) / 2 over elements. gaussian: sum
    of (x - y)^2 / (2 g^2) + log g over elements, g from `found.log_scale` or else `log_gamma`.

    Returns: (batch,).
    Source: seed 002, section 2.2.
    """
    if loss == "l2":
        terms = (image - found.image).square()
    elif loss == "dssim":
        terms = dssim_map(image, found.image)
    else:
        scale = found.log_scale if found.log_scale is not None else log_gamma
        assert scale is not None
        terms = gaussian_terms(image, found.image, scale)
    return terms.flatten(1).sum(1)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of every code, (batch,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
