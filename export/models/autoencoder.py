"""The convolutional autoencoder of Bergmann et al. 2018, plain, as VAE and with learned variance.

Images and reconstructions lie in [0, 1]; the last layer is linear, as published, so that its
gradient does not fade at black and white. All convolutions but the last of encoder and decoder are
followed by a leaky ReLU of slope 0.2; there is no normalisation, so that a reconstruction does not
depend on statistics of a batch.
Source: seed 002, section 4.1; Bergmann et al. 2018, table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unblemish.errors import ConfigError

Variance = Literal["none", "unit", "global", "pixel"]
LEAK = 0.2
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
    """

    size: int = 128
    channels: int = 1
    latent: int = 100
    width: int = 32
    variance: Variance = "none"

    def __post_init__(self) -> None:
        if self.size < 16 or self.size > 1024 or self.size % 16:
            raise ConfigError(
                f"an autoencoder takes images of a multiple of 16 pixels up to 1024, not "
                f"{self.size}. Choose another --size."
            )
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


class Encoder(nn.Module):
    """image -> code, or mean and log variance of it.

    The published last layer, a convolution with a kernel of the whole image left, is a dense layer;
    written as one its gradient is one too.
    """

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for old, new, stride in settings.layers:
            kernel = 4 if stride == 2 else 3
            steps += [nn.Conv2d(old, new, kernel, stride, padding=1), nn.LeakyReLU(LEAK)]
        self.scales = nn.Sequential(*steps)
        inner = settings.width * settings.core**2
        self.mean = nn.Linear(inner, settings.latent)
        self.log_variance = nn.Linear(inner, settings.latent) if settings.variational else None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """image: (batch, channels, size, size) in [0, 1]. Returns (batch, latent) each."""
        x = self.scales(image).flatten(1)
        if self.log_variance is None:
            return self.mean(x), None
        return self.mean(x), self.log_variance(x).clamp(*LOG_VARIANCE)


class Decoder(nn.Module):
    """code -> reconstruction, and the log of its standard deviation where every element has one."""

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.start = nn.Linear(settings.latent, settings.width * settings.core**2)
        steps: list[nn.Module] = []
        for new, old, stride in settings.layers[:0:-1]:
            layer = nn.ConvTranspose2d if stride == 2 else nn.Conv2d
            kernel = 4 if stride == 2 else 3
            steps += [layer(old, new, kernel, stride, padding=1), nn.LeakyReLU(LEAK)]
        self.scales = nn.Sequential(*steps)
        self.image = nn.ConvTranspose2d(settings.width, settings.channels, 4, 2, padding=1)
        self.scale = (
            nn.ConvTranspose2d(settings.width, settings.channels, 4, 2, padding=1)
            if settings.variance == "pixel"
            else None
        )

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor | None]:
        """code: (batch, latent). Returns (batch, channels, size, size) each; scale: log, [0, 1]."""
        s = self.settings
        x = torch.nn.functional.leaky_relu(self.start(code), LEAK)
        x = self.scales(x.reshape(-1, s.width, s.core, s.core))
        if self.scale is None:
            return self.image(x), None
        return self.image(x), self.scale(x).clamp(*LOG_SCALE)


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
        initialise(self)

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
def initialise(network: Autoencoder) -> None:
    """Draw weights that keep the variance of a signal through every layer, biases zero.

    Without normalisation the signal would otherwise fade to a ten-thousandth on its way, and the
    network would learn the mean image alone for thousands of updates. The last layers begin small:
    near the mean image, and with a code that is hardly noisy.
    """
    gain = nn.init.calculate_gain("leaky_relu", LEAK)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            weight = layer.weight
            inputs = weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):  # (in, out, 4, 4), a quarter meets a pixel
                inputs = weight.shape[0] * weight[0, 0].numel() // 4
            nn.init.normal_(weight, std=gain * inputs**-0.5)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    for last, factor in ((network.decoder.image, 0.1), (network.decoder.scale, 0.1),
                         (network.encoder.log_variance, 0.01)):  # fmt: skip
        if last is not None:
            last.weight.mul_(factor)
    if network.encoder.log_variance is not None:
        network.encoder.log_variance.bias.fill_(FIRST_LOG_VARIANCE)
    if network.decoder.scale is not None:
        assert network.decoder.scale.bias is not None
        network.decoder.scale.bias.fill_(FIRST_LOG_SCALE)


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
