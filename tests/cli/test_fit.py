"""`unblemish fit`: a bundle and the next command, or one clear line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from unblemish.bundle import Bundle
from unblemish.export.backbones.resnet import RESNETS, ResNet

Command = Callable[..., Any]
SMALL = ("--size", 32, "--layers", "layer1", "--selected", 8)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Normals, weights and where the bundle goes."""
    folder = tmp_path / "normals"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(90, 160, (40, 40), np.uint8))
    torch.manual_seed(0)
    torch.save(ResNet(RESNETS["resnet18"], ("layer1",)).state_dict(), tmp_path / "weights.pth")
    return folder, tmp_path / "weights.pth", tmp_path / "part.bundle"


def arguments(parts: tuple[Path, Path, Path], method: str = "padim") -> tuple[Any, ...]:
    folder, weights, out = parts
    return ("fit", method, "--normals", folder, "--weights", weights, "--out", out, *SMALL)


def test_fit_writes_a_bundle_and_says_what_comes_next(
    run: Command, parts: tuple[Path, Path, Path]
) -> None:
    (parts[0] / "broken.png").write_bytes(b"no image")
    result = run(*arguments(parts), "--seed", 2, "--held-back", 0.25)
    assert result.code == 0, result.err
    assert Bundle.open(parts[2]).manifest.method == "padim"
    assert "3 normal images" in result.out
    assert f"next: unblemish calibrate {parts[2]} --normals" in result.out
    assert "--share 0.25 --seed 2" in result.out
    assert "set aside: cannot read" in result.err
    assert "broken.png" in result.err


def empty(folder: Path, weights: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def one(folder: Path, weights: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def no_weights(folder: Path, weights: Path) -> None:
    weights.unlink()


def damaged_weights(folder: Path, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:5000])


def other_weights(folder: Path, weights: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2)}, weights)


def not_finite(folder: Path, weights: Path) -> None:
    state = torch.load(weights)
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, weights)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (empty, "no image in"),
        (one, "one was usable"),
        (no_weights, "torchvision"),
        (damaged_weights, "cannot be read"),
        (other_weights, "encoder.weight"),
        (not_finite, "NaN"),
    ],
)
def test_fit_refuses_bad_input_by_one_message(
    spoil: Callable[[Path, Path], None], word: str, run: Command, parts: tuple[Path, Path, Path]
) -> None:
    spoil(parts[0], parts[1])
    result = run(*arguments(parts))
    assert result.code == 2, result
    assert "error: " in result.err
    assert word in result.err
    assert "Traceback" not in result.err
    assert "unexpected" not in result.err
    assert not parts[2].exists()


@pytest.mark.parametrize(
    ("more", "word"),
    [(("--size", 30), "multiple of"), (("--selected", 1000), "64 channels"),
     (("--layers", "layer9"), "layer9"), (("--backbone", "resnet50"), "resnet50"),
     (("--channels", 2), "channels must be"), (("--inpainter", "none.onnx"), "none.onnx"),
     (("--mean", "0.5"), "for .onnx networks")],
)  # fmt: skip
def test_fit_refuses_wrong_settings(
    more: tuple[Any, ...], word: str, run: Command, parts: tuple[Path, Path, Path]
) -> None:
    result = run(*arguments(parts), *more)
    assert result.code == 2, result
    assert word in result.err
    assert "unexpected" not in result.err


def test_fit_refuses_an_unknown_method(run: Command, parts: tuple[Path, Path, Path]) -> None:
    result = run(*arguments(parts, "spade"))
    assert result.code == 2
    assert "patchcore, padim, cflow" in result.err


def test_fit_leaves_the_old_bundle_when_the_disk_is_full(
    run: Command, parts: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*arguments(parts)).code == 0
    before = (parts[2] / "manifest.json").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    result = run(*arguments(parts), "--seed", 1)
    assert result.code == 2
    assert "No space left on device" in result.err
    assert (parts[2] / "manifest.json").read_bytes() == before
    Bundle.open(parts[2])


def test_fit_takes_any_onnx_network(run: Command, parts: tuple[Path, Path, Path]) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    kernel = np.random.default_rng(0).standard_normal((5, 1, 4, 4)).astype(np.float32)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])
    cells = helper.make_tensor_value_info("cells", TensorProto.FLOAT, ["n", 5, "r", "c"])
    node = helper.make_node("Conv", ["x", "w"], ["cells"], strides=[4, 4])
    graph = helper.make_graph([node], "g", [image], [cells], [numpy_helper.from_array(kernel, "w")])
    network = parts[1].with_suffix(".onnx")
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), network)
    asked = ("fit", "padim", "--normals", parts[0], "--weights", network, "--out", parts[2])
    result = run(*asked, "--size", 32, "--layers", "cells", "--mean", "0.5", "--std", "0.2")
    assert result.code == 0, result.err
    assert "padim on onnx cells" in result.out
    wrong = run(*asked, "--size", 32, "--mean", "a,b")
    assert wrong.code == 2
    assert "numbers between commas" in wrong.err
    missing = run(*asked, "--size", 32, "--layers", "layer1")
    assert missing.code == 2
    assert "Its outputs are cells" in missing.err
