"""Training of autoencoders: that it learns, resumes, settles, and records its losses."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from unblemish.calibration.training import TrainOptions
from unblemish.calibration.training.autoencoder_trainer import AutoencoderTrainer
from unblemish.calibration.training.dataset import open_normals
from unblemish.calibration.training.options import PATIENCE
from unblemish.calibration.training.patience import CHECK_EVERY, Patience
from unblemish.calibration.training.run import train
from unblemish.cli import main
from unblemish.errors import ConfigError
from unblemish.export.models.checkpoint import load_autoencoder, load_checkpoint

# The same operations in the same order on the same machine; threads may split sums otherwise.
SAME_LOSS = 1e-5
KINDS = [
    {"model": "l2ae"}, {"model": "dsae"}, {"model": "ae-vae"}, {"model": "gamma-vae"},
    {"model": "gamma-vae", "variance": "pixel"},
    {"model": "gamma-vae", "network": "resnet"},
    {"model": "gamma-vae", "network": "resnet", "variance": "pixel"},
]  # fmt: skip
NAMES = ["l2ae", "dsae", "ae-vae", "gamma-vae", "pixel", "resnet", "resnet-pixel"]
NETWORKS = ["conv", "resnet"]


@pytest.fixture(autouse=True)
def _one_thread_few_windows(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("unblemish.calibration.training.loop.MEASURED", 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def normals(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Twelve photographs of a bright bar whose place varies, with a little noise."""
    folder = tmp_path / "normals"
    folder.mkdir()
    for index in range(12):
        image = np.full((24, 28), 90.0)
        image[:, 4 + index : 9 + index] += 80
        image += rng.normal(0, 2, image.shape)
        cv2.imwrite(str(folder / f"{index:02d}.png"), np.clip(image, 0, 255).astype(np.uint8))
    return folder


def _options(**changes: Any) -> TrainOptions:
    small: dict[str, Any] = {
        "model": "l2ae", "size": 32, "latent": 3, "width": 4, "steps": 8, "batch": 4,
        "augment": ("hflip",), "held_back": 0.25,
    }  # fmt: skip
    return TrainOptions(**{**small, **changes})


@pytest.mark.parametrize("changes", KINDS, ids=NAMES)
def test_training_of_the_published_network_lowers_its_loss(
    normals: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    options = _options(**changes, linear=False, steps=100, lr=3e-3, patience=0)
    losses = train(normals, tmp_path / "a.pt", options).losses
    first, last = np.mean(losses[:10]), np.mean(losses[-10:])
    # Of a gamma-vae the loss is a logarithm: 0.3 is a quarter less error.
    assert last < (first - 0.3 if changes["model"] == "gamma-vae" else 0.7 * first)


def test_linear_part_gives_a_better_start(normals: Path, tmp_path: Path) -> None:
    one, other = (
        train(normals, tmp_path / f"{linear}.pt", _options(linear=linear)) for linear in (0, 1)
    )
    assert other.figures["held_back_rmse"] < 0.8 * one.figures["held_back_rmse"]
    settings = load_checkpoint(tmp_path / "1.pt").settings
    assert (settings["linear"], settings["size"]) == (32, 32)


@pytest.mark.parametrize(
    "changes",
    [KINDS[3], KINDS[4], {"geometry": "tiles"}, {**KINDS[6], "channels": 3}],
    ids=["gamma-vae", "pixel", "tiles", "resnet"],
)
def test_resumed_training_repeats_an_uninterrupted_run(
    normals: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    steps, stop = 2 * CHECK_EVERY + 4, CHECK_EVERY + 2
    options = _options(**changes, steps=steps, patience=5)
    whole = train(normals, tmp_path / "whole.pt", options)

    def stop_half_way(progress: Any) -> None:
        if progress.step == stop:
            signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "parts.pt"
    parts = [train(normals, out, options, resume=True, report=stop_half_way) for _ in range(2)]
    losses = [loss for part in parts for loss in part.losses]
    assert [part.steps for part in parts] == [stop, steps]
    np.testing.assert_allclose(losses, whole.losses, rtol=SAME_LOSS, atol=SAME_LOSS)
    one, other = (load_checkpoint(tmp_path / f"{n}.pt") for n in ("whole", "parts"))
    for name, value in one.weights.items():
        torch.testing.assert_close(other.weights[name], value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other.losses, one.losses, rtol=1e-3, atol=1e-3)
    assert one.training is not None
    assert other.training is not None
    assert one.training["patience"]["step"] == other.training["patience"]["step"]


@pytest.mark.parametrize("network", NETWORKS)
def test_run_that_no_longer_improves_settles(normals: Path, tmp_path: Path, network: Any) -> None:
    # A rate that changes no float32 weight: the first check is the best, all others equal it.
    options = _options(steps=9999, lr=1e-30, patience=2, network=network)
    report = train(normals, tmp_path / "a.pt", options)
    assert (report.settled, report.steps) == (CHECK_EVERY, 3 * CHECK_EVERY)
    again = train(normals, tmp_path / "a.pt", options, resume=True)
    assert (again.settled, again.steps) == (CHECK_EVERY, 3 * CHECK_EVERY)


@pytest.mark.parametrize("network", NETWORKS)
def test_checkpoint_holds_the_weights_of_the_best_check(
    normals: Path, tmp_path: Path, network: Any
) -> None:
    options = _options(steps=2 * CHECK_EVERY, lr=0.03, patience=9, batch=2, network=network)
    report = train(normals, tmp_path / "a.pt", options)
    training = load_checkpoint(tmp_path / "a.pt").training
    assert training is not None
    # All three held-back images take part in both, so that they agree.
    best = training["patience"]["best"]
    assert report.figures["held_back_loss"] == pytest.approx(best, rel=1e-5)
    assert set(training["latest"]) == set(load_checkpoint(tmp_path / "a.pt").weights)


@pytest.mark.parametrize(("size", "channels", "side"), [(128, 1, 64), (144, 1, 48), (128, 3, 32)])
def test_linear_map_is_of_a_side_that_fits(size: int, channels: int, side: int) -> None:
    trainer = AutoencoderTrainer(_options(size=size), channels)
    assert (trainer.settings.linear, trainer.settings.channels) == (side, channels)


def test_patience_counts_checks_and_keeps_a_copy_of_the_best() -> None:
    patience = Patience(2)
    weight = torch.tensor([1.0])
    for step, loss in enumerate([3.0, 2.0, 2.5], start=1):
        patience.saw(loss, step, {"w": weight})
        weight += 1
    assert not patience.settled
    patience.saw(2.0, 4, {"w": weight})
    assert patience.settled
    assert patience.weights is not None
    assert (patience.step, patience.best, float(patience.weights["w"])) == (2, 2.0, 2.0)


def test_losses_are_those_of_the_training_images_as_they_are(normals: Path, tmp_path: Path) -> None:
    options = _options(steps=20, augment=("brightness", "shift"))
    train(normals, tmp_path / "a.pt", options)
    loaded = load_autoencoder(tmp_path / "a.pt")
    assert loaded is not None
    images = np.concatenate(list(open_normals(normals, options).originals(1000))) / 2 + 0.5
    with torch.no_grad():
        reconstructions = loaded.network(torch.from_numpy(images)).image.numpy()
    expected = np.square(images - reconstructions).sum((1, 2, 3))
    assert len(expected) == 9
    found = dict(loaded.losses)
    assert found[0.0] == pytest.approx(expected.min(), rel=1e-4)
    assert found[0.5] == pytest.approx(np.median(expected), rel=1e-4)
    assert found[1.0] == pytest.approx(expected.max(), rel=1e-4)


def test_originals_are_every_image_once_or_so_many_windows(normals: Path) -> None:
    whole = open_normals(normals, _options())
    parts = list(whole.originals(1000, part=4))
    assert [len(part) for part in parts] == [4, 4, 1]
    assert len(np.unique(np.concatenate(parts).mean((1, 2, 3)))) == 9
    tiles = open_normals(normals, _options(geometry="tiles"))
    assert sum(len(part) for part in tiles.originals(40)) == 40
    np.testing.assert_array_equal(next(tiles.originals(40)), next(tiles.originals(40)))


def test_learned_scale_is_the_error_of_the_decoder(normals: Path, tmp_path: Path) -> None:
    options = _options(model="gamma-vae", steps=60, augment=())
    report = train(normals, tmp_path / "a.pt", options)
    loaded = load_autoencoder(tmp_path / "a.pt")
    assert loaded is not None
    gamma = float(torch.exp(loaded.network.log_gamma))
    # The scale is that of noisy codes and a moving average; the error that of images not trained.
    assert report.figures["held_back_rmse"] / 2 < gamma < report.figures["held_back_rmse"] * 2


def test_autoencoders_are_patient_unless_told_otherwise() -> None:
    assert _options().checks == PATIENCE
    assert _options(patience=0).checks == 0
    assert _options(held_back=0.0).checks == 0
    assert _options(model="vae").checks == 0
    with pytest.raises(ConfigError, match="needs held-back images"):
        _options(held_back=0.0, patience=3)
    with pytest.raises(ConfigError, match="other than pggan"):
        _options(model="pggan", patience=3)


def test_network_belongs_to_the_run_and_to_autoencoders(normals: Path, tmp_path: Path) -> None:
    train(normals, tmp_path / "a.pt", _options(steps=2))
    with pytest.raises(ConfigError, match="network was conv, now resnet"):
        train(normals, tmp_path / "a.pt", _options(steps=4, network="resnet"), resume=True)
    with pytest.raises(ConfigError, match="network must be one of conv, resnet; found 'vgg'"):
        _options(network="vgg")
    with pytest.raises(ConfigError, match=r"resnet is for the models l2ae.*found model vae"):
        _options(model="vae", network="resnet")


@pytest.mark.parametrize("network", NETWORKS)
def test_train_and_export_from_the_command_line(
    normals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], network: str
) -> None:
    out = tmp_path / "part.pt"
    arguments = ["--model", "gamma-vae", "--size", "32", "--latent", "3", "--width", "4"]
    arguments += ["--network", network]
    arguments += ["--steps", "4", "--geometry", "tiles", "--augment", "none"]
    assert main(["train", "--normals", str(normals), "--out", str(out), *arguments]) == 0
    assert "held_back_loss" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "part.png")).shape[0] == 3 * 32
    assert main(["export", str(out), "--out", str(tmp_path / "part.bundle")]) == 0
    assert "gradient_pair" in capsys.readouterr().out


def test_size_that_does_not_fit_is_refused(normals: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 16"):
        train(normals, tmp_path / "a.pt", _options(size=72))
