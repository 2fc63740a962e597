"""Probabilistic PCA: the best linear encoder and decoder, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unblemish.errors import CalibrationError
from unblemish.export.models.autoencoder import Autoencoder
from unblemish.export.models.vae import Vae


@dataclass(frozen=True)
class Ppca:
    """x = W z + mu + noise, with z ~ N(0, I) and noise variance `noise` per element.

    Args:
        decode: W, (elements, latent). encode: (W^T W + noise I)^-1 W^T, (latent, elements).
        mean: mu, (elements,). noise: variance left, unit: squared intensity.
        spread: posterior variance of each latent, (latent,).
    """

    decode: Tensor
    encode: Tensor
    mean: Tensor
    noise: float
    spread: Tensor


def fit_ppca(samples: Tensor, latent: int) -> Ppca:
    """Fit by the eigenvectors U and eigenvalues l of the sample covariance.

        noise = mean of the eigenvalues left out        W = U diag(sqrt(l - noise))
        (W^T W + noise I)^-1 W^T = diag(sqrt(l - noise) / l) U^T       spread = noise / l

    Components without variance above the noise get W = 0 and spread 1: the prior.

    Args:
        samples: (count, elements).
    Raises: CalibrationError where all samples are equal.
    Source: Tipping and Bishop 1999, eqs. 6-8.
    """
    count, elements = samples.shape
    mean = samples.mean(0)
    centred = samples - mean
    values, vectors = _eigen(centred)
    if float(values[0]) <= 1e-9 * elements:
        raise CalibrationError(
            "all normal images are equal, so there is no variation to learn. Give different images."
        )
    kept = min(latent, count - 1, elements)
    noise = max(float(values[kept:].sum()) / max(elements - kept, 1), 1e-8)
    signal = torch.zeros(latent, dtype=torch.float64)
    signal[:kept] = (values[:kept] - noise).clamp_min(0.0)
    total = signal + noise
    axes = torch.zeros(elements, latent)
    axes[:, :kept] = vectors[:, :kept] * (values[:kept] > noise)
    return Ppca(
        axes * signal.sqrt().float(),
        (axes * (signal.sqrt() / total).float()).T.contiguous(),
        mean,
        noise,
        torch.where(signal > 0, noise / total, torch.ones_like(total)).float(),
    )


def _eigen(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (float64) and eigenvectors (float32 columns) of the covariance, largest first.

    With fewer samples than elements they come from the smaller Gram matrix, X X^T / n =
    V diag(l) V^T: the covariance's eigenvectors are X^T V / sqrt(n l).
    """
    count, elements = centred.shape
    if elements <= count:
        values, vectors = torch.linalg.eigh((centred.T @ centred).double() / count)
        return values.flip(0).clamp_min(0.0), vectors.flip(1).float()
    values, vectors = torch.linalg.eigh((centred @ centred.T).double() / count)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    scale = (count * values).clamp_min(1e-12).rsqrt()
    return values, (centred.T @ vectors.float()) * scale.float()


def samples_for(latent: int) -> int:
    """Images to fit on: eight per latent, of which augmentation makes each one new."""
    return max(8 * latent, 1024)


@torch.no_grad()
def fit_maps(encoder: nn.Linear, decoder: nn.Linear, samples: Tensor) -> Ppca:
    """Set two linear layers to the best encoder and decoder of `samples`, (count, elements)."""
    fitted = fit_ppca(samples, decoder.in_features)
    decoder.weight.copy_(fitted.decode)
    decoder.bias.copy_(fitted.mean)
    encoder.weight.copy_(fitted.encode)
    encoder.bias.copy_(-(fitted.encode @ fitted.mean))
    return fitted


@torch.no_grad()
def fit_linear_part(network: Vae | Autoencoder, images: Tensor) -> Ppca:
    """Set the linear maps of a network, and its posterior variance where it has one, from images.

    Args:
        images: (count, C, size, size) in the network's intensities.
    """
    settings = network.settings
    pooled = F.avg_pool2d(images, settings.size // settings.canvas).flatten(1)
    decoder, encoder = network.decoder.linear, network.encoder.linear
    assert decoder is not None
    assert encoder is not None
    fitted = fit_maps(encoder, decoder, pooled)
    if network.encoder.log_variance is not None:
        network.encoder.log_variance.bias.copy_(fitted.spread.log())
    return fitted
