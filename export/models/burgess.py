"""The Burgess VAE for 64x64 images in [0, 1], in the layout that disentanglement libraries publish.

Source: Burgess et al. 2018; layout `encoder.conv1 ... encoder.mu_logvar_gen`,
`decoder.lin1 ... decoder.convT3`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE = 64


class Encoder(nn.Module):
    """image -> mean and log variance of the latent, interleaved in the last layer."""

    def __init__(self, channels: int, latent: int, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 4, 2, 1)
        self.conv2 = nn.Conv2d(width, width, 4, 2, 1)
        self.conv3 = nn.Conv2d(width, width, 4, 2, 1)
        self.conv_64 = nn.Conv2d(width, width, 4, 2, 1)
        self.lin1 = nn.Linear(16 * width, hidden)
        self.lin2 = nn.Linear(hidden, hidden)
        self.mu_logvar_gen = nn.Linear(hidden, 2 * latent)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (batch, channels, 64, 64) in [0, 1]. Returns (batch, latent) twice."""
        x = image
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv_64):
            x = torch.relu(convolution(x))
        x = torch.relu(self.lin2(torch.relu(self.lin1(x.flatten(1)))))
        pairs = self.mu_logvar_gen(x)
        # The published layer counts (latent, 2): even rows are means, odd rows log variances.
        return pairs[:, 0::2], pairs[:, 1::2]


class Decoder(nn.Module):
    """z -> image in [0, 1]."""

    def __init__(self, channels: int, latent: int, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(latent, hidden)
        self.lin2 = nn.Linear(hidden, hidden)
        self.lin3 = nn.Linear(hidden, 16 * width)
        self.convT_64 = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.convT1 = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.convT2 = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.convT3 = nn.ConvTranspose2d(width, channels, 4, 2, 1)
        self.width = width

    def forward(self, z: Tensor) -> Tensor:
        """z: (batch, latent), prior standard deviations. Returns (batch, channels, 64, 64)."""
        x = torch.relu(self.lin2(torch.relu(self.lin1(z))))
        x = torch.relu(self.lin3(x)).reshape(-1, self.width, 4, 4)
        for convolution in (self.convT_64, self.convT1, self.convT2):
            x = torch.relu(convolution(x))
        return torch.sigmoid(self.convT3(x))


class BurgessVae(nn.Module):
    """Encoder and decoder; decodes the mean."""

    def __init__(
        self, channels: int = 3, latent: int = 10, width: int = 32, hidden: int = 256
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, latent, width, hidden)
        self.decoder = Decoder(channels, latent, width, hidden)

    def forward(self, image: Tensor) -> Tensor:
        mean, _ = self.encoder(image)
        reconstruction: Tensor = self.decoder(mean)
        return reconstruction
