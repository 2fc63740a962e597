"""The convolutional autoencoder of Bergmann et al. 2018, plain, as VAE and with learned variance.

Images and reconstructions lie in [0, 1]; the last layer is linear, as published, so that its
gradient does not fade at black and white. All convolutions but the last of encoder and decoder are
followed by a leaky ReLU of slope 0.2. Batch normalisation between the two is for training alone:
`folded` multiplies it into the weights, and the network exported is the published one. Beside it
may stand a linear map, probabilistic PCA in closed form, that stays fixed: the convolutions then
learn what it leaves, and training takes minutes instead of hours.
Source: seed 002, section 4.1; Bergmann et al. 2018, table 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unblemish.errors import ConfigError
from unblemish.export.models.vae import LEAK, fixed_linear, fold_block, silence

Variance = Literal["none", "unit", "global", "pixel"]
LARGEST_CORE = 15  # px: larger images are halved once more
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
    """

    size: int = 128
    channels: int = 1
    latent: int = 100
    width: int = 32
    variance: Variance = "none"
    linear: int = 0

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

    @property
    def canvas(self) -> int:
        """Side of the linear map's image, 0 for none."""
        return self.linear

    @property
    def variational(self) -> bool:
        """Whether the encoder gives a distribution."""
        return self.variance != "none"

    @property
    def extra(self) -> int:
        """Halvings beyond the four of the published network, which has them for 128 pixels."""
        halvings = 4
        while self.size >> halvings > LARGEST_CORE and not (self.size >> halvings) % 2:
            halvings += 1
        return halvings - 4

    @property
    def core(self) -> int:
        """Side of the image that the code is drawn from, pixels; 8 as published."""
        return self.size >> (4 + self.extra)

    @property
    def layers(self) -> tuple[tuple[int, int, int], ...]:
        """The encoder's convolutions: (inputs, outputs, stride); kernels of 4 where strided, or 3.

        The decoder has them in opposite order, transposed where strided.
        """
        w = self.width
        plan = [(w, 2), *([(w, 2)] * self.extra), (w, 2), (w, 1), (2 * w, 2), (2 * w, 1),
                (4 * w, 2), (2 * w, 1), (w, 1)]  # fmt: skip
        inputs = [self.channels, *(outputs for outputs, _ in plan)]
        return tuple((old, new, stride) for old, (new, stride) in zip(inputs, plan, strict=False))


def _block(inputs: int, outputs: int, stride: int, *, up: bool = False) -> nn.Sequential:
    layer = nn.ConvTranspose2d if up and stride == 2 else nn.Conv2d
    kernel = 4 if stride == 2 else 3
    return nn.Sequential(
        layer(inputs, outputs, kernel, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(LEAK),
    )


class Encoder(nn.Module):
    """image -> code, or mean and log variance of it.

    The published last layer, a convolution with a kernel of the whole image left, is a dense layer;
    written as one its gradient is one too.
    """

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.scales = nn.Sequential(*(_block(*layer) for layer in settings.layers))
        inner = settings.width * settings.core**2
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
        self.start = nn.Linear(settings.latent, settings.width * settings.core**2)
        self.scales = nn.Sequential(
            *(_block(old, new, stride, up=True) for new, old, stride in settings.layers[:0:-1])
        )
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
        x = self.scales(x.reshape(-1, s.width, s.core, s.core))
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
        for block in (*result.encoder.scales, *result.decoder.scales):
            assert isinstance(block, nn.Sequential)
            fold_block(block)
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
