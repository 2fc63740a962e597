"""The networks: shapes, folding, fading, and the figures the design states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from unblemish.errors import ConfigError
from unblemish.export.models.burgess import BurgessVae
from unblemish.export.models.pggan import Discriminator, Generator, PgganSettings, pggan_widths
from unblemish.export.models.vae import Vae, VaeSettings

# float32 sums in another order: a few units in the last place of values near 1.
FOLDED = 1e-5


def test_pggan_has_the_size_that_the_design_states() -> None:
    generator = Generator(PgganSettings(128, 3, 512))
    assert sum(p.numel() for p in generator.parameters()) == 18_330_834


@pytest.mark.parametrize("size", [8, 32, 1024])
def test_pggan_widths_end_at_the_size(size: int) -> None:
    widths = pggan_widths(size)
    assert 4 << (len(widths) - 1) == size
    assert list(widths) == sorted(widths, reverse=True)


@pytest.mark.parametrize("size", [0, 4, 48, 2048, -128])
def test_pggan_refuses_a_size_that_is_no_power_of_two(size: int) -> None:
    with pytest.raises(ConfigError, match=f"not {size}"):
        PgganSettings(size)


@pytest.mark.parametrize("channels", [1, 3])
def test_pggan_folded_generates_the_same_images(
    pggan_networks: Callable[..., Any], channels: int
) -> None:
    generator, _ = pggan_networks(32, channels)
    z = torch.randn(3, 6)
    expected, found = generator(z), generator.folded()(z)
    assert expected.shape == (3, channels, 32, 32)
    torch.testing.assert_close(
        found, expected, rtol=FOLDED, atol=FOLDED * float(expected.detach().abs().max())
    )


def test_pggan_normalises_the_latent(pggan_networks: Callable[..., Any]) -> None:
    generator, _ = pggan_networks()
    z = torch.randn(2, 6)
    torch.testing.assert_close(generator(7 * z), generator(z), rtol=1e-4, atol=1e-4)


def test_pggan_fade_is_the_blend_of_two_stages(pggan_networks: Callable[..., Any]) -> None:
    generator, _ = pggan_networks()
    z = torch.randn(2, 6)
    last = generator.stage
    new = generator(z)
    generator.stage = last - 1
    old = torch.nn.functional.interpolate(generator(z), scale_factor=2.0, mode="nearest")
    generator.stage, generator.fade = last, 0.25
    torch.testing.assert_close(generator(z), 0.25 * new + 0.75 * old, rtol=1e-5, atol=1e-5)


def test_pggan_folding_refuses_a_network_that_is_still_fading(
    pggan_networks: Callable[..., Any],
) -> None:
    generator, _ = pggan_networks()
    generator.fade = 0.5
    with pytest.raises(ConfigError, match=r"fade 0\.50"):
        generator.folded()


def test_discriminator_folded_equals_a_batch_of_one(pggan_networks: Callable[..., Any]) -> None:
    _, discriminator = pggan_networks()
    images = torch.randn(4, 3, 16, 16)
    alone = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(discriminator.folded()(images), alone, rtol=1e-4, atol=1e-4)


def test_discriminator_deviation_sees_the_batch(pggan_networks: Callable[..., Any]) -> None:
    _, discriminator = pggan_networks()
    images = torch.randn(4, 3, 16, 16)
    assert not torch.allclose(discriminator(images), discriminator.folded()(images), rtol=1e-3)


def test_discriminator_deviation_is_that_of_groups_of_four() -> None:
    discriminator = Discriminator(PgganSettings(8, 1, 4, (2, 2)))
    x = torch.randn(8, 2, 4, 4)
    with_channel = discriminator._with_deviation(x)
    for group in range(2):
        members = x[group::2]  # image i belongs to group i mod 2
        mean = np.sqrt(members.numpy().var(0, ddof=1) + 1e-8).mean()
        np.testing.assert_allclose(with_channel[group::2, 2].numpy(), mean, rtol=1e-5)


@pytest.mark.parametrize(("size", "channels", "variational"), [(8, 1, True), (32, 3, False)])
def test_vae_folded_computes_the_same(size: int, channels: int, variational: bool) -> None:
    torch.manual_seed(0)
    network = Vae(VaeSettings(size, channels, 5, 4, 8, variational=variational))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(6, channels, size, size)
    network(images)
    network.eval()
    expected, folded = network(images), network.folded()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    for found, wanted in zip(folded(images), expected, strict=True):
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_vae_linear_part_is_exact_under_autocast() -> None:
    network = Vae(VaeSettings(16, 1, 5, 4, 8)).eval()
    assert network.decoder.linear is not None
    torch.nn.init.normal_(network.decoder.linear.weight)
    z = torch.randn(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = network.decoder(z)
    # The convolutional part starts silent, so the linear part is all there is.
    torch.testing.assert_close(found, network.decoder(z), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("setting", [{"size": 100}, {"latent": 0}, {"linear": 48}])
def test_vae_refuses_settings_that_make_no_network(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        VaeSettings(**setting)


def test_burgess_pairs_mean_and_variance_row_by_row() -> None:
    network = BurgessVae(channels=1, latent=3, width=2, hidden=4)
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        network.encoder.mu_logvar_gen.weight.zero_()
        network.encoder.mu_logvar_gen.bias.copy_(torch.arange(6.0))
    mean, log_variance = network.encoder(image)
    assert mean[0].tolist() == [0, 2, 4]
    assert log_variance[0].tolist() == [1, 3, 5]
