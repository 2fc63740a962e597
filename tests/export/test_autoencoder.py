"""The autoencoder of the energy projection: its shape, its modes, its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unblemish.errors import ConfigError, ModelError
from unblemish.export.models.autoencoder import Autoencoder, AutoencoderSettings, Projector
from unblemish.export.models.checkpoint import (
    Checkpoint,
    load_autoencoder,
    load_model,
    save_checkpoint,
    settings_of,
)
from unblemish.export.models.scales import Residual

EXACT = {"rtol": 0.0, "atol": 0.0}
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32, sums in another order


def _network(
    size: int = 32, variance: Any = "none", channels: int = 1, network: Any = "conv"
) -> Autoencoder:
    torch.manual_seed(0)
    settings = AutoencoderSettings(size, channels, 5, 4, variance, network=network)
    return Autoencoder(settings).eval()


def _unsettle(network: torch.nn.Module) -> None:
    """Give all normalisation statistics and weights that do something."""
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
                norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                norm.weight.uniform_(0.5, 2)
                norm.bias.normal_(0, 0.5)


def test_network_is_the_published_one_at_128_pixels() -> None:
    settings = AutoencoderSettings()
    assert settings.layers == (
        (1, 32, 2), (32, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2),
        (128, 64, 1), (64, 32, 1),
    )  # fmt: skip
    assert (settings.core, settings.latent) == (8, 100)


def test_residual_network_halves_to_a_few_pixels_and_widens_once() -> None:
    settings = AutoencoderSettings(64, 3, network="resnet")
    assert settings.layers == ((3, 32, 2), (32, 64, 2), (64, 64, 2), (64, 64, 2))
    assert (settings.core, settings.inner) == (4, 64)


def test_residual_block_is_the_leaky_relu_of_its_input_before_it_has_learned() -> None:
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(Residual(3)(x), torch.where(x > 0, x, 0.2 * x), **EXACT)


def test_residual_block_adds_two_normalised_convolutions() -> None:
    block = Residual(3).eval()
    _unsettle(block)
    x = torch.randn(2, 3, 5, 7)

    def normalised(image: torch.Tensor, part: torch.nn.Sequential) -> torch.Tensor:
        conv, norm = part[0], part[1]
        assert isinstance(conv, torch.nn.Conv2d)
        assert isinstance(norm, torch.nn.BatchNorm2d)
        made = torch.nn.functional.conv2d(image, conv.weight, padding=1).movedim(1, -1)
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        centred = (made - mean) / (variance + 1e-5).sqrt()
        return (centred * norm.weight + norm.bias).movedim(-1, 1)

    inner = normalised(x, block.first)
    outer = x + normalised(torch.maximum(inner, 0.2 * inner), block.second)
    torch.testing.assert_close(block(x), torch.maximum(outer, 0.2 * outer), **ROUNDING)


@pytest.mark.parametrize("kind", ["conv", "resnet"])
def test_folded_network_computes_the_same_without_normalisation(kind: str) -> None:
    network = _network(variance="pixel", network=kind)
    _unsettle(network)
    folded = network.folded()
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    image = torch.rand(2, 1, 32, 32)
    for name in ("image", "mean", "log_variance", "log_scale"):
        expected = getattr(network(image), name)
        torch.testing.assert_close(getattr(folded(image), name), expected, rtol=1e-4, atol=1e-5)


def test_linear_map_alone_reconstructs_before_the_convolutions_have_learned() -> None:
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderSettings(32, 1, 5, 4, linear=16)).eval()
    encoder, decoder = network.encoder.linear, network.decoder.linear
    assert encoder is not None
    assert decoder is not None
    torch.nn.init.normal_(encoder.weight)
    torch.nn.init.normal_(decoder.weight)
    image = torch.rand(2, 1, 32, 32)
    small = torch.nn.functional.avg_pool2d(image, 2).flatten(1)
    canvas = (small @ encoder.weight.T @ decoder.weight.T).reshape(2, 1, 16, 16)
    expected = torch.nn.functional.interpolate(canvas, size=(32, 32), mode="bilinear")
    torch.testing.assert_close(network(image).image, expected, **ROUNDING)


def test_code_is_that_of_a_full_size_valid_convolution() -> None:
    network = _network()
    image = torch.rand(2, 1, 32, 32)
    inner = network.encoder.scales(image)
    kernel = network.encoder.mean.weight.reshape(5, 4, 2, 2)
    expected = torch.nn.functional.conv2d(inner, kernel, network.encoder.mean.bias)
    torch.testing.assert_close(network.encoder(image)[0], expected[:, :, 0, 0], **ROUNDING)


@pytest.mark.parametrize(
    ("kind", "size", "core"),
    [
        *(("conv", s, c) for s, c in ((32, 2), (48, 3), (128, 8), (192, 12), (256, 8), (272, 17))),
        *(("resnet", s, c) for s, c in ((32, 4), (48, 6), (80, 5), (128, 4), (272, 17), (512, 4))),
    ],
)
def test_every_multiple_of_16_is_reconstructed_at_its_size(kind: Any, size: int, core: int) -> None:
    network = Autoencoder(AutoencoderSettings(size, 3, 2, 1, "pixel", network=kind)).eval()
    found = network(torch.rand(1, 3, size, size))
    assert network.settings.core == core
    assert found.image.shape == found.log_scale.shape == (1, 3, size, size)


@pytest.mark.parametrize("variance", ["none", "unit", "global", "pixel"])
def test_noise_moves_only_variational_reconstructions(variance: str) -> None:
    network = _network(variance=variance)
    image, noise = torch.rand(2, 1, 32, 32), torch.randn(2, 5)
    plain, noisy = network(image).image, network(image, noise).image
    assert torch.equal(plain, noisy) == (variance == "none")
    torch.testing.assert_close(network(image, torch.zeros(2, 5)).image, plain, **EXACT)


@pytest.mark.parametrize(
    ("variance", "names"),
    [
        ("none", ["reconstruction"]),
        ("unit", ["reconstruction", "mean", "log_variance"]),
        ("global", ["reconstruction", "mean", "log_variance"]),
        ("pixel", ["reconstruction", "mean", "log_variance", "log_scale"]),
    ],
)
def test_projector_gives_what_it_names(variance: str, names: list[str]) -> None:
    network = _network(variance=variance)
    image = torch.rand(2, 1, 32, 32)
    projector, found = Projector(network), network(image)
    assert list(projector.outputs) == names
    expected = {
        "reconstruction": found.image, "mean": found.mean, "log_variance": found.log_variance,
        "log_scale": found.log_scale,
    }  # fmt: skip
    for name, value in zip(names, projector(image), strict=True):
        torch.testing.assert_close(value, expected[name], **EXACT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 100}, "multiple of 16"),
        ({"size": 16}, "32 to 1024 pixels"),
        ({"linear": 48}, "linear must divide the size 128"),
        ({"latent": 0}, "positive channels, latent and width"),
        ({"variance": "learned"}, "variance must be one of none, unit, global, pixel"),
        ({"network": "vgg"}, "network must be one of conv, resnet; found 'vgg'"),
    ],
)
def test_shape_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderSettings(**fields)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoint_gives_back_network_and_losses(tmp_path: Path, suffix: str) -> None:
    network = _network(variance="global")
    network.log_gamma.fill_(-2.5)
    path = tmp_path / f"part{suffix}"
    kept = Checkpoint(
        "gamma-vae", settings_of(network.settings), network.state_dict(),
        preprocess={"geometry": "tiles"}, losses=[[0.0, -3.0], [1.0, 4.0]],
    )  # fmt: skip
    save_checkpoint(path, kept)
    loaded = load_autoencoder(path)
    assert loaded is not None
    assert (loaded.kind, loaded.losses) == ("gamma-vae", [[0.0, -3.0], [1.0, 4.0]])
    assert loaded.preprocess == {"geometry": "tiles"}
    assert float(loaded.network.log_gamma) == -2.5
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(loaded.network(image).image, network(image).image, **ROUNDING)


def test_checkpoint_from_before_there_were_two_networks_is_the_published_one(
    tmp_path: Path,
) -> None:
    network = _network()
    settings = settings_of(network.settings)
    del settings["network"]
    path = tmp_path / "part.pt"
    save_checkpoint(path, Checkpoint("l2ae", settings, network.state_dict()))
    loaded = load_autoencoder(path)
    assert loaded is not None
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(loaded.network(image).image, network(image).image, **ROUNDING)


def test_autoencoder_is_no_generator_and_a_generator_no_autoencoder(
    tmp_path: Path, vae_checkpoint: Path
) -> None:
    network = _network()
    path = tmp_path / "part.pt"
    save_checkpoint(path, Checkpoint("l2ae", settings_of(network.settings), network.state_dict()))
    with pytest.raises(ModelError, match="'l2ae', which is no generator"):
        load_model(path)
    assert load_autoencoder(vae_checkpoint) is None


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    network = _network()
    path = tmp_path / "part.pt"
    other = settings_of(AutoencoderSettings(32, 1, 5, 4, "unit"))
    save_checkpoint(path, Checkpoint("ae-vae", other, network.state_dict()))
    with pytest.raises(ModelError, match=r"missing .*log_variance"):
        load_autoencoder(path)
