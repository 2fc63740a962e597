"""Checkpoints: ours, other projects', damaged, foreign and hostile ones."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unblemish.errors import ModelError
from unblemish.export.models.burgess import BurgessVae
from unblemish.export.models.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_model,
    save_checkpoint,
)

SAME = {"rtol": 1e-5, "atol": 1e-5}  # folding reorders float32 sums


def _save_zoo(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    """The older naming, without `.module`."""
    return {name.replace(".module.", "."): value for name, value in state.items()}


def _parallel(state: dict[str, Any]) -> dict[str, Any]:
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("layout", ["plain", "flat", "parallel", "netG", "avgG", "avgG flat"])
def test_zoo_layout_gives_the_network_it_was_saved_from(
    tmp_path: Path, pggan_networks: Callable[..., Any], layout: str
) -> None:
    generator, discriminator = pggan_networks()
    state = generator.state_dict()
    content: dict[str, Any] = {
        "plain": lambda: state,
        "flat": lambda: _flat(state),
        "parallel": lambda: _parallel(state),
        "netG": lambda: {"netG": state, "netD": discriminator.state_dict()},
        "avgG": lambda: {"netG": _zeros(state), "avgG": state, "netD": discriminator.state_dict()},
        "avgG flat": lambda: {"avgG": _flat(state), "netG": _flat(_zeros(state))},
    }[layout]()
    model = load_model(_save_zoo(tmp_path / "zoo.pth", content))
    z = torch.randn(2, 6)
    assert (model.kind, model.latent, model.size, model.channels) == ("pggan", 6, 16, 3)
    assert (model.discriminator is not None) == ("netD" in content)
    scale = float(generator(z).detach().abs().max())
    torch.testing.assert_close(model.generator(z) / scale, generator(z) / scale, **SAME)


def _zeros(state: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def test_zoo_discriminator_without_deviation_is_recognised(
    tmp_path: Path, pggan_networks: Callable[..., Any]
) -> None:
    generator, discriminator = pggan_networks(minibatch=False)
    content = {"netG": generator.state_dict(), "netD": discriminator.state_dict()}
    model = load_model(_save_zoo(tmp_path / "zoo.pth", content))
    images = torch.randn(4, 3, 16, 16)
    assert model.discriminator is not None
    expected = discriminator(images)
    torch.testing.assert_close(model.discriminator(images), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def zoo_settings(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class that pytorch_GAN_zoo pickles into its files, under its own module name."""

    class BaseConfig:
        pass

    BaseConfig.__module__, BaseConfig.__qualname__ = "models.utils.config", "BaseConfig"
    module = types.ModuleType("models.utils.config")
    module.BaseConfig = BaseConfig  # type: ignore[attr-defined]
    for name in ("models", "models.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "models.utils.config", module)
    return BaseConfig


def test_zoo_settings_object_is_read_without_its_class(
    tmp_path: Path, pggan_networks: Callable[..., Any], zoo_settings: type
) -> None:
    generator, _ = pggan_networks()
    config = zoo_settings()
    config.alpha, config.leakyReluLeak, config.attribKeysOrder = 0, 0.2, None
    path = _save_zoo(tmp_path / "zoo.pth", {"config": config, "netG": generator.state_dict()})
    assert load_model(path).latent == 6


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("alpha", 0.3, "fading in"), ("leakyReluLeak", 0.1, "leakyReluLeak=0.1"),
     ("equalizedlR", False, "equalizedlR=False")],
)  # fmt: skip
def test_zoo_variants_that_compute_something_else_are_refused(
    tmp_path: Path, pggan_networks: Callable[..., Any], zoo_settings: type,
    name: str, value: Any, message: str,
) -> None:  # fmt: skip
    generator, _ = pggan_networks()
    config = zoo_settings()
    setattr(config, name, value)
    path = _save_zoo(tmp_path / "zoo.pth", {"config": config, "netG": generator.state_dict()})
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_burgess_layout_gives_the_network_it_was_saved_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = BurgessVae(channels=3, latent=4, width=3, hidden=5)
    model = load_model(_save_zoo(tmp_path / "face.pt", network.state_dict()))
    z, image = torch.randn(2, 4), torch.rand(2, 3, 64, 64)
    assert (model.kind, model.latent, model.low, model.high) == ("burgess", 4, 0.0, 1.0)
    torch.testing.assert_close(model.generator(z), network.decoder(z), **SAME)
    assert model.encoder is not None
    torch.testing.assert_close(model.encoder(image), network.encoder(image)[0], **SAME)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_own_checkpoint_comes_back_the_same(vae_checkpoint: Path, suffix: str) -> None:
    checkpoint = load_checkpoint(vae_checkpoint)
    path = vae_checkpoint.with_name(f"copy{suffix}")
    save_checkpoint(path, checkpoint)
    again = load_checkpoint(path)
    assert (again.kind, again.settings) == (checkpoint.kind, checkpoint.settings)
    assert again.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(again.weights[n], checkpoint.weights[n]) for n in again.weights)


def test_growth_survives_safetensors(tmp_path: Path, pggan_checkpoint: Path) -> None:
    import dataclasses

    checkpoint = load_checkpoint(pggan_checkpoint)
    for stage, fade, said in ((2.0, 0.5, "16 of 16 pixels, fade 0.50"), (1.0, 1.0, "8 of 16")):
        growing = dataclasses.replace(checkpoint, growth={"stage": stage, "fade": fade})
        save_checkpoint(tmp_path / "growing.safetensors", growing)
        with pytest.raises(ModelError, match=said):
            load_model(tmp_path / "growing.safetensors")


def test_truncated_checkpoint_is_named(vae_checkpoint: Path) -> None:
    content = vae_checkpoint.read_bytes()
    vae_checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"vae\.pt cannot be read: it is truncated"):
        load_model(vae_checkpoint)


@pytest.mark.parametrize("name", ["noise.pt", "noise.safetensors", "empty.pt"])
def test_file_that_is_no_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"" if name.startswith("empty") else b"no checkpoint at all" * 9)
    with pytest.raises(ModelError, match=name):
        load_model(path)


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "none.pt")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": _Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"weights": _Bomb()}, protocol=2))
    for path in (tmp_path / "bomb.pt", tmp_path / "bomb.pth"):
        with pytest.raises(ModelError):
            load_model(path)
    assert not (tmp_path / "exploded").exists()


def test_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    path = _save_zoo(tmp_path / "other.pt", {"conv1.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"conv1\.weight.*pytorch_GAN_zoo.*Burgess"):
        load_model(path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {1: 2}])
def test_content_that_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ModelError, match="expected a state_dict"):
        load_model(_save_zoo(tmp_path / "list.pt", content))


def test_missing_and_unexpected_tensors_are_named(
    tmp_path: Path, pggan_networks: Callable[..., Any]
) -> None:
    state = pggan_networks()[0].state_dict()
    state["groupScale0.0.module.extra"] = state.pop("groupScale0.0.module.bias")
    with pytest.raises(
        ModelError, match=r"groupScale0\.0\.module\.bias.*groupScale0\.0\.module\.extra"
    ):
        load_model(_save_zoo(tmp_path / "zoo.pth", dict(state)))


def test_misshapen_tensor_is_named(tmp_path: Path, pggan_networks: Callable[..., Any]) -> None:
    state = pggan_networks()[0].state_dict()
    state["scaleLayers.0.1.module.bias"] = torch.zeros(99)
    with pytest.raises(ModelError, match=r"scaleLayers\.0\.1\.module\.bias.*\(99,\)"):
        load_model(_save_zoo(tmp_path / "zoo.pth", dict(state)))


def test_non_finite_weights_are_refused(tmp_path: Path, vae_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(vae_checkpoint)
    checkpoint.weights["decoder.image.bias"][0] = float("nan")
    save_checkpoint(tmp_path / "nan.pt", checkpoint)
    with pytest.raises(ModelError, match=r"decoder\.image\.bias.*NaN"):
        load_model(tmp_path / "nan.pt")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("gan9", {}), ("vae", {"size": 17}), ("vae", {"colour": 3}), ("pggan", {"size": 16})],
)
def test_own_checkpoint_with_wrong_settings_is_refused(
    tmp_path: Path, kind: str, settings: dict[str, int]
) -> None:
    save_checkpoint(tmp_path / "wrong.pt", Checkpoint(kind, settings, {"w": torch.zeros(1)}))
    with pytest.raises(ModelError):
        load_model(tmp_path / "wrong.pt")


def test_checkpoint_of_a_newer_version_is_refused(vae_checkpoint: Path) -> None:
    content = torch.load(vae_checkpoint, weights_only=True)
    torch.save({**content, "version": 99}, vae_checkpoint)
    with pytest.raises(ModelError, match="version 99"):
        load_model(vae_checkpoint)
