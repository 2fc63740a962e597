"""Training runs: resumed, interrupted, killed, diverged, and fed bad folders."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from unblemish.calibration.training import TrainOptions
from unblemish.calibration.training.run import TrainingReport, train
from unblemish.cli import main
from unblemish.errors import CalibrationError, ConfigError, ModelError, SourceError
from unblemish.export.models.checkpoint import load_checkpoint, load_model

# The same operations in the same order on the same machine; threads may split sums otherwise.
SAME_LOSS = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def normals(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Twelve photographs of sizes that differ: bright bars on grey, with noise."""
    folder = tmp_path / "normals"
    folder.mkdir()
    for index in range(12):
        height, width = 40 + 3 * index, 52 - 2 * index
        image = np.full((height, width), 90.0)
        image[:, width // 3 : width // 3 + 4 + index % 3] += 80
        image += rng.normal(0, 4, image.shape) + 5 * (index % 4)
        cv2.imwrite(str(folder / f"{index:02d}.png"), np.clip(image, 0, 255).astype(np.uint8))
    return folder


def _options(**changes: Any) -> TrainOptions:
    small: dict[str, Any] = {
        "size": 16, "latent": 4, "width": 4, "steps": 8, "batch": 4, "precision": "float32",
    }  # fmt: skip
    return TrainOptions(**{**small, **changes})


def _losses(*reports: TrainingReport) -> list[float]:
    return [loss for report in reports for loss in report.losses]


@pytest.mark.parametrize(
    "changes",
    [{}, {"beta": 0.0}, {"model": "pca"}, {"precision": "bfloat16"}, {"geometry": "tiles"},
     {"model": "pggan", "width": 64, "latent": 8, "channels": 3, "steps": 12}],
    ids=["vae", "autoencoder", "pca", "bfloat16", "tiles", "pggan"],
)  # fmt: skip
def test_resumed_training_repeats_an_uninterrupted_run(
    normals: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    options = _options(**changes)
    steps = options.steps or 0
    whole = train(normals, tmp_path / "whole.pt", options)
    parts = []
    for _ in range(2):

        def stop_half_way(progress: Any) -> None:
            if progress.step == steps // 2:
                signal.raise_signal(signal.SIGTERM)

        report = train(normals, tmp_path / "parts.pt", options, resume=True, report=stop_half_way)
        parts.append(report)
    assert [part.stopped_by for part in parts] == ["SIGTERM", None]
    assert [part.steps for part in parts] == [steps // 2, steps]
    np.testing.assert_allclose(_losses(*parts), _losses(whole), rtol=SAME_LOSS, atol=SAME_LOSS)
    one, other = (load_checkpoint(tmp_path / f"{n}.pt").weights for n in ("whole", "parts"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


def test_another_seed_gives_another_run(normals: Path, tmp_path: Path) -> None:
    one = train(normals, tmp_path / "one.pt", _options(seed=1))
    other = train(normals, tmp_path / "other.pt", _options(seed=2))
    assert _losses(one) != _losses(other)


def test_training_starts_from_the_closed_form_and_improves_on_it(
    normals: Path, tmp_path: Path
) -> None:
    start = train(normals, tmp_path / "start.pt", _options(steps=1, held_back=0.25))
    longer = train(normals, tmp_path / "longer.pt", _options(steps=200, held_back=0.25))
    # The images spread by more than 0.1 around their mean.
    assert start.figures["held_back_rmse"] < 0.02
    assert np.mean(longer.losses[-20:]) < np.mean(longer.losses[:20]) - 0.1
    assert (start.images, start.held_back) == (9, 3)


def test_killed_training_leaves_a_checkpoint_that_resumes(normals: Path, tmp_path: Path) -> None:
    out = tmp_path / "vae.pt"
    command = [
        sys.executable, "-m", "unblemish", "train", "--normals", str(normals), "--out", str(out),
        "--size", "16", "--latent", "4", "--width", "4", "--batch", "4", "--steps", "100000",
        "--precision", "float32", "--checkpoint-seconds", "0.05",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # somewhere between two checkpoints, or inside one
    finally:
        process.kill()
        process.wait()
    step = load_checkpoint(out).figures["steps"]
    assert step > 0
    steps = int(step) + 2
    report = train(normals, out, _options(steps=steps), resume=True)
    assert (report.steps, len(report.losses)) == (steps, 2)


def test_interrupted_command_saves_and_says_how_to_go_on(normals: Path, tmp_path: Path) -> None:
    out = tmp_path / "vae.pt"
    command = [
        sys.executable, "-m", "unblemish", "train", "--normals", str(normals), "--out", str(out),
        "--size", "16", "--latent", "4", "--width", "4", "--steps", "100000",
        "--checkpoint-seconds", "0.2",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped by SIGINT; go on with the same command and --resume" in said
    assert load_model(out).kind == "vae"


def test_diverged_training_keeps_the_last_good_checkpoint(normals: Path, tmp_path: Path) -> None:
    out = tmp_path / "vae.pt"
    train(normals, out, _options())
    before = out.read_bytes()
    with pytest.raises(ModelError, match=r"diverged at step \d+.*kept in .*vae\.pt.*--lr"):
        train(normals, out, _options(lr=1e30, steps=200), overwrite=True)
    assert out.read_bytes() == before


def test_existing_checkpoint_is_neither_resumed_nor_replaced_unasked(
    normals: Path, tmp_path: Path
) -> None:
    out = tmp_path / "vae.pt"
    out.write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"--resume.*--overwrite"):
        train(normals, out, _options())
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize("changed", [{"latent": 5}, {"augment": ()}, {"seed": 3}])
def test_resume_refuses_other_settings(
    normals: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    out = tmp_path / "vae.pt"
    train(normals, out, _options(steps=1))
    with pytest.raises(ConfigError, match=f"{next(iter(changed))} was"):
        train(normals, out, _options(steps=2, **changed), resume=True)


def test_resume_refuses_images_of_other_channels(normals: Path, tmp_path: Path) -> None:
    out = tmp_path / "vae.pt"
    train(normals, out, _options(steps=1, channels=1))
    with pytest.raises(ConfigError, match=r"images of 1 channel\(s\), these give 3"):
        train(normals, out, _options(steps=2, channels=3), resume=True)


def test_resume_of_a_broken_checkpoint_is_refused_before_reading_images(tmp_path: Path) -> None:
    out = tmp_path / "vae.pt"
    out.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ModelError, match="truncated"):
        train(tmp_path / "no such folder", out, _options(), resume=True)


def test_broken_images_are_skipped_and_counted(
    normals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (normals / "torn.png").write_bytes((normals / "00.png").read_bytes()[:60])
    (normals / "text.jpg").write_text("no image")
    arguments = ["--size", "16", "--latent", "4", "--width", "4", "--steps", "2", "--batch", "2"]
    out = str(tmp_path / "vae.pt")
    assert main(["train", "--normals", str(normals), "--out", out, *arguments]) == 0
    said = capsys.readouterr()
    assert "2 files could not be read" in said.out
    assert "torn.png" in said.err
    assert "text.jpg" in said.err


def test_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"none of the 1 images"):
        train(tmp_path, tmp_path / "vae.pt", _options())


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no image in"):
        train(tmp_path, tmp_path / "vae.pt", _options())


def test_equal_images_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((20, 20), 80, np.uint8))
    with pytest.raises(CalibrationError, match="all normal images are equal"):
        train(tmp_path, tmp_path / "vae.pt", _options(augment=()))


def test_one_image_is_enough_to_run(normals: Path, tmp_path: Path) -> None:
    for path in sorted(normals.iterdir())[1:]:
        path.unlink()
    report = train(normals, tmp_path / "vae.pt", _options(steps=2))
    assert np.isfinite(report.losses).all()
    assert (report.images, report.held_back) == (1, 0)


@pytest.mark.parametrize("name", ["vae.onnx", "vae"])
def test_out_that_is_no_checkpoint_name_is_refused(
    normals: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.pt"):
        train(normals, tmp_path / name, _options())


def test_folder_that_cannot_be_written_is_named(normals: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(SourceError, match=r"cannot write .*vae\.pt"):
        train(normals, blocker / "vae.pt", _options(steps=1))


def test_full_disk_keeps_the_old_checkpoint(
    normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "vae.pt"
    train(normals, out, _options(steps=1))
    before = out.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SourceError, match="No space left"):
        train(normals, out, _options(steps=2), resume=True)
    assert out.read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".vae")]


def test_colour_or_grey_follows_the_first_image_unless_stated(
    normals: Path, tmp_path: Path
) -> None:
    grey = train(normals, tmp_path / "grey.pt", _options(steps=1))
    colour = train(normals, tmp_path / "colour.pt", _options(steps=1, channels=3))
    assert load_checkpoint(grey.checkpoint).settings["channels"] == 1
    assert load_checkpoint(colour.checkpoint).settings["channels"] == 3
    assert cv2.imread(str(colour.grid)).shape[0] == 3 * 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gan"}, "model must be one of vae, pca, pggan"),
        ({"geometry": "crop"}, "geometry must be one of"),
        ({"augment": ("sepia",)}, "augment must be one of"),
        ({"steps": None}, "how long"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"channels": 2}, "channels must be 1"),
        ({"held_back": 1.0}, "held_back"),
        ({"batch": 0}, "batch must be positive"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _options(**changes)


def test_wrong_size_is_named(normals: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not 100"):
        train(normals, tmp_path / "vae.pt", _options(size=100))
