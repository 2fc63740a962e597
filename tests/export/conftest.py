"""Small checkpoints, written as training writes them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIZE, LATENT = 16, 6


@pytest.fixture
def vae_checkpoint(tmp_path: Path, _vae: Path) -> Path:
    """A VAE of 16 pixels whose every layer, the linear part included, does something."""
    return Path(shutil.copy(_vae, tmp_path / "vae.pt"))


@pytest.fixture(scope="session")
def _vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint, settings_of
    from unblemish.export.models.vae import Vae, VaeSettings

    torch.manual_seed(0)
    settings = VaeSettings(SIZE, 1, LATENT, 4, 8)
    network = Vae(settings)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network(torch.randn(8, 1, SIZE, SIZE))  # running statistics other than 0 and 1
    path = tmp_path_factory.mktemp("vae") / "vae.pt"
    save_checkpoint(path, Checkpoint("vae", settings_of(settings), network.state_dict()))
    return path


@pytest.fixture(scope="session")
def _vae_plan(_vae: Path) -> Any:
    from unblemish.export.build import plan
    from unblemish.export.options import ExportOptions

    return plan(_vae, ExportOptions())


@pytest.fixture
def vae_plan(_vae_plan: Any) -> Any:
    """What would be written of `vae_checkpoint`, to be changed at will."""
    return copy.deepcopy(_vae_plan)


@pytest.fixture(scope="session")
def _vae_bundle(_vae: Path, _vae_plan: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from unblemish.export.build import write_plan
    from unblemish.export.options import ExportOptions

    out = tmp_path_factory.mktemp("bundle") / "part.bundle"
    return Path(write_plan(_vae_plan, _vae, out, ExportOptions()).path)


@pytest.fixture
def vae_bundle(_vae_bundle: Path, tmp_path: Path) -> Path:
    """The bundle of `vae_checkpoint`, to be changed at will."""
    return Path(shutil.copytree(_vae_bundle, tmp_path / "part.bundle"))


@pytest.fixture(scope="session")
def pggan_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PGGAN of 16 pixels with its discriminator, for all tests. Do not change it."""
    return _save_pggan(tmp_path_factory.mktemp("pggan") / "pggan.pt")


@pytest.fixture(scope="session")
def pggan_plan(pggan_path: Path) -> Any:
    """Everything that a PGGAN can bring: discriminator and free weights. Do not change it."""
    from unblemish.export.build import plan
    from unblemish.export.options import ExportOptions

    return pggan_path, plan(pggan_path, ExportOptions(discriminator=True, finetune=True))


def _networks(size: int = SIZE, channels: int = 3, minibatch: bool = True) -> Any:
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


def _save_pggan(path: Path) -> Path:
    from unblemish.export.models.checkpoint import Checkpoint, save_checkpoint, settings_of

    generator, critic = _networks()
    settings = settings_of(generator.settings)
    save_checkpoint(
        path, Checkpoint("pggan", settings, generator.state_dict(), critic.state_dict())
    )
    return path


@pytest.fixture
def pggan_networks() -> Callable[..., Any]:
    """Makes generator and discriminator of a small PGGAN with non-zero biases."""
    return _networks


@pytest.fixture
def pggan_checkpoint(tmp_path: Path) -> Path:
    """A PGGAN of 16 pixels with its discriminator."""
    return _save_pggan(tmp_path / "pggan.pt")
