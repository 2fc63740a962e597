"""Small checkpoints, written as training writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIZE, LATENT = 16, 6


@pytest.fixture
def vae_checkpoint(tmp_path: Path) -> Path:
    """A VAE of 16 pixels whose every layer, the linear part included, does something."""
    import torch

    from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint, settings_of
    from unblemish.export.models.vae import Vae, VaeSettings

    torch.manual_seed(0)
    settings = VaeSettings(SIZE, 1, LATENT, 4, 8)
    network = Vae(settings)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network(torch.randn(8, 1, SIZE, SIZE))  # running statistics other than 0 and 1
    path = tmp_path / "vae.pt"
    save_checkpoint(path, Checkpoint("vae", settings_of(settings), network.state_dict()))
    return path


@pytest.fixture
def pggan_networks() -> Callable[..., Any]:
    """Generator and discriminator of a small PGGAN with non-zero biases."""

    def make(size: int = SIZE, channels: int = 3, minibatch: bool = True) -> Any:
        import torch

        from unblemish.export.models.pggan import Discriminator, Generator, PgganSettings

        torch.manual_seed(1)
        stages = len(bin(size)) - 4
        settings = PgganSettings(size, channels, LATENT, tuple(8 - k for k in range(stages)))
        networks = Generator(settings), Discriminator(settings, minibatch=minibatch)
        for network in networks:
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter)
        return networks

    return make


@pytest.fixture
def pggan_checkpoint(tmp_path: Path, pggan_networks: Callable[..., Any]) -> Path:
    """A PGGAN of 16 pixels with its discriminator."""
    from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint, settings_of

    generator, discriminator = pggan_networks()
    path = tmp_path / "pggan.pt"
    save_checkpoint(
        path,
        Checkpoint(
            "pggan",
            settings_of(generator.settings),
            generator.state_dict(),
            discriminator.state_dict(),
        ),
    )
    return path
