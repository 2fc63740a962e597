"""Autoencoders of the energy projection: plain, as VAE and with learned decoder variance.

Two networks: the convolutional one of Bergmann et al. 2018, and one with residual blocks at every
scale, for faces and other colour images, in the spirit of Dai and Wipf 2019. Images and
reconstructions lie in [0, 1]; the last layer is linear, as published, so that its gradient does not
fade at black and white. All convolutions but the last of encoder and decoder are followed by a
leaky ReLU of slope 0.2. Batch normalisation between the two is for training alone: `folded`
multiplies it into the weights, and the convolutional network exported is the published one. Beside
it may stand a linear map, probabilistic PCA in closed form, that stays fixed: the convolutions then
learn what it leaves, and training takes minutes instead of hours.
Source: seed 002, section 4.1; Bergmann et al. 2018, table 1; Dai and Wipf 2019.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unblemish.errors import ConfigError
from unblemish.export.models.scales import decoder_scales, encoder_scales, fold_scales
from unblemish.export.models.vae import LEAK, fixed_linear, silence

Network = Literal["conv", "resnet"]
Variance = Literal["none", "unit", "global", "pixel"]
LARGEST_CORE = 15  # px: larger images are halved once more
LARGEST_SCALE = 7  # the same of the residual network
# Bounds of log variances and log scales: exp neither overflows nor vanishes in float32, and a
# scale below half a grey level of 8 bits would claim more than an image holds.
LOG_VARIANCE = (-12.0, 4.0)
LOG_SCALE = (-6.2, 1.0)
FIRST_LOG_VARIANCE, FIRST_LOG_SCALE = -4.0, -1.5


@dataclass(frozen=True)
class AutoencoderSettings:
    """Shape of an autoencoder.

    Args:
        size: image side, pixels, a multiple of 16. channels: 1 or 3. latent: length of the code.
        width: feature maps of the first layer (32 as published); the others are in proportion.
        variance: of the decoder's Gaussian: none (a deterministic autoencoder), unit (a VAE),
            global (a gamma-VAE with one learned scale) or pixel (with one of every element).
        linear: side of the image that the linear map sees and draws; 0 for none, as published.
        network: conv, the published one, or resnet: scales of half the side, a quarter, ... down
            to at most `LARGEST_SCALE` pixels, a residual block at each, with `width` feature maps
            at the first and twice as many at the others.
    """

    size: int = 128
    channels: int = 1
    latent: int = 100
    width: int = 32
    variance: Variance = "none"
    linear: int = 0
    network: Network = "conv"

    def __post_init__(self) -> None:
        if self.size < 32 or self.size > 1024 or self.size % 16:
            raise ConfigError(
                f"an autoencoder takes images of 32 to 1024 pixels, a multiple of 16, not "
                f"{self.size}. Choose another --size."
            )
        if self.linear < 0 or (self.linear and self.size % self.linear):
            raise ConfigError(f"linear must divide the size {self.size}; found {self.linear}.")
        if min(self.channels, self.latent, self.width) < 1:
            raise ConfigError(
                "an autoencoder needs positive channels, latent and width; found "
                f"{self.channels}, {self.latent} and {self.width}."
            )
        if self.variance not in get_args(Variance):
            raise ConfigError(
                f"variance must be one of {', '.join(get_args(Variance))}; found {self.variance!r}."
            )
        if self.network not in get_args(Network):
            raise ConfigError(
                f"network must be one of {', '.join(get_args(Network))}; found {self.network!r}."
            )

    @property
    def canvas(self) -> int:
        """Side of the linear map's image, 0 for none."""
        return self.linear

    @property
    def variational(self) -> bool:
        """Whether the encoder gives a distribution."""
        return self.variance != "none"

    @property
    def residual(self) -> bool:
        """Whether every scale has a residual block."""
        return self.network == "resnet"

    @property
    def halvings(self) -> int:
        """How often the image is halved: four times at least, as published for 128 pixels, of the
        residual network three times."""
        least, largest = (3, LARGEST_SCALE) if self.residual else (4, LARGEST_CORE)
        halvings = least
        while self.size >> halvings > largest and not (self.size >> halvings) % 2:
            halvings += 1
        return halvings

    @property
    def core(self) -> int:
        """Side of the image that the code is drawn from, pixels; 8 as published."""
        return self.size >> self.halvings

    @property
    def inner(self) -> int:
        """Feature maps of the image that the code is drawn from."""
        return self.layers[-1][1]

    @property
    def layers(self) -> tuple[tuple[int, int, int], ...]:
        """The encoder's convolutions: (inputs, outputs, stride); kernels of 4 where strided, or 3.

        The decoder has them in opposite order, transposed where strided.
        """
        w = self.width
        if self.residual:
            plan = [(w, 2), *([(2 * w, 2)] * (self.halvings - 1))]
        else:
            plan = [(w, 2), *([(w, 2)] * (self.halvings - 4)), (w, 2), (w, 1), (2 * w, 2),
                    (2 * w, 1), (4 * w, 2), (2 * w, 1), (w, 1)]  # fmt: skip
        inputs = [self.channels, *(outputs for outputs, _ in plan)]
        return tuple((old, new, stride) for old, (new, stride) in zip(inputs, plan, strict=False))


class Encoder(nn.Module):
    """image -> code, or mean and log variance of it.

    The published last layer, a convolution with a kernel of the whole image left, is a dense layer;
    written as one its gradient is one too.
    """

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.scales = encoder_scales(settings.layers, residual=settings.residual)
        inner = settings.inner * settings.core**2
        self.mean = nn.Linear(inner, settings.latent)
        self.log_variance = nn.Linear(inner, settings.latent) if settings.variational else None
        self.linear = fixed_linear(settings.channels * settings.canvas**2, settings.latent)
        if self.log_variance is not None:
            silence(self.log_variance)
            self.log_variance.bias.data.fill_(FIRST_LOG_VARIANCE)
        if self.linear is not None:
            silence(self.mean)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """image: (batch, channels, size, size) in [0, 1]. Returns (batch, latent) each."""
        x = self.scales(image).flatten(1)
        mean: Tensor = self.mean(x)
        if self.linear is not None:
            picture = F.avg_pool2d(image, self.settings.size // self.settings.canvas)
            mean = mean + self.linear(picture.flatten(1))
        if self.log_variance is None:
            return mean, None
        return mean, self.log_variance(x).clamp(*LOG_VARIANCE)


class Decoder(nn.Module):
    """code -> reconstruction, and the log of its standard deviation where every element has one."""

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.start = nn.Linear(settings.latent, settings.inner * settings.core**2)
        self.scales = decoder_scales(settings.layers, residual=settings.residual)
        self.image = nn.ConvTranspose2d(settings.width, settings.channels, 4, 2, padding=1)
        self.scale: nn.ConvTranspose2d | None = None
        if settings.variance == "pixel":
            self.scale = nn.ConvTranspose2d(settings.width, settings.channels, 4, 2, padding=1)
            silence(self.scale)
            assert self.scale.bias is not None
            self.scale.bias.data.fill_(FIRST_LOG_SCALE)
        self.linear = fixed_linear(settings.latent, settings.channels * settings.canvas**2)
        if self.linear is not None:
            silence(self.image)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor | None]:
        """code: (batch, latent). Returns (batch, channels, size, size) each; scale: log, [0, 1]."""
        s = self.settings
        x = F.leaky_relu(self.start(code), LEAK)
        x = self.scales(x.reshape(-1, s.inner, s.core, s.core))
        image: Tensor = self.image(x)
        if self.linear is not None:
            canvas = self.linear(code).reshape(-1, s.channels, s.canvas, s.canvas)
            image = image + F.interpolate(
                canvas, size=(s.size, s.size), mode="bilinear", align_corners=False
            )
        return image, None if self.scale is None else self.scale(x).clamp(*LOG_SCALE)


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder says of images; `mean`, `log_variance` (batch, latent), the others as
    the images. `log_scale`: log standard deviation of every element, or None."""

    image: Tensor
    mean: Tensor
    log_variance: Tensor | None
    log_scale: Tensor | None


class Autoencoder(nn.Module):
    """Encoder and decoder. `log_gamma`: log of the one standard deviation of a gamma-VAE."""

    def __init__(self, settings: AutoencoderSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or AutoencoderSettings()
        self.encoder = Encoder(self.settings)
        self.decoder = Decoder(self.settings)
        if self.settings.variance == "global":
            self.register_buffer("log_gamma", torch.zeros(()))

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Reconstruct `image` from mean + exp(log variance / 2) noise.

        Args:
            image: (batch, channels, size, size) in [0, 1].
            noise: (batch, latent) standard normal; None decodes the mean.
        """
        mean, log_variance = self.encoder(image)
        code = mean
        if noise is not None and log_variance is not None:
            code = mean + torch.exp(0.5 * log_variance) * noise
        reconstruction, log_scale = self.decoder(code)
        return Reconstruction(reconstruction, mean, log_variance, log_scale)

    @torch.no_grad()
    def folded(self) -> Autoencoder:
        """An equal network in inference mode without normalisation layers, for export."""
        result = copy.deepcopy(self).eval().requires_grad_(False)
        fold_scales(result.encoder.scales)
        fold_scales(result.decoder.scales)
        return result


class Projector(nn.Module):
    """An autoencoder as the search sees it: the mean path, its values as a tuple.

    `outputs` names them: reconstruction; of a VAE mean and log_variance; log_scale of every element
    where it is learned.
    """

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network
        self.outputs: tuple[str, ...] = ("reconstruction",)
        if network.settings.variational:
            self.outputs += ("mean", "log_variance")
        if network.settings.variance == "pixel":
            self.outputs += ("log_scale",)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """image: (batch, channels, size, size) in [0, 1]. Returns the values of `outputs`."""
        found = self.network(image)
        if found.log_variance is None:
            return (found.image,)
        values = (found.image, found.mean, found.log_variance)
        return values if found.log_scale is None else (*values, found.log_scale)
