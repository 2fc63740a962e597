"""`unblemish export --precision`, and which engine then runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from unblemish.bundle import Bundle
from unblemish.runtime.backends.choose import obstacle_of

Command = Callable[..., Any]


@pytest.fixture
def normals(tmp_path: Path, modes: tuple[np.ndarray, np.ndarray]) -> Path:
    """Twelve photographs of parts that the generator makes, with noise of 1 %."""
    weights, mean = modes
    folder = tmp_path / "normals"
    folder.mkdir()
    rng = np.random.default_rng(3)
    side = int(np.sqrt(mean.size))
    for number in range(12):
        image = (mean + rng.standard_normal(len(weights)) @ weights).reshape(side, side)
        noisy = image + rng.normal(0, 0.01, image.shape)
        pixels = np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:02d}.png"), pixels)
    return folder


def test_export_makes_a_bundle_float16_and_says_what_it_costs(
    run: Command, bundle: Path, normals: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half.bundle"
    result = run("export", bundle, "--out", out, "--precision", "fp16", "--normals", normals)
    assert result.code == 0, result
    assert "fp16 against float32: Dice 0." in result.out
    manifest = Bundle.open(out).manifest
    assert manifest.precision == "fp16"
    assert 0 < manifest.parity["fp16_image_rmse"] < 1e-3
    assert manifest.calibration == Bundle.open(bundle).manifest.calibration
    assert "parameters, fp16" in " ".join(run("show", out).out.split())
    inspected = run("inspect", out, *sorted(normals.iterdir())[:2], "--out", tmp_path / "results")
    assert inspected.code in (0, 1), inspected  # 1: a part failed
    assert not inspected.err.startswith("error")


def test_export_of_an_onnx_generator_in_bfloat16(
    run: Command, bundle: Path, normals: Path, tmp_path: Path
) -> None:
    out = tmp_path / "brain.bundle"
    source = bundle / "forward.onnx"
    result = run(
        "export", source, "--out", out, "--range=0,1", "--precision", "bf16", "--normals", normals
    )
    assert result.code == 0, result
    assert Bundle.open(out).manifest.precision == "bf16"
    refused = run("calibrate", out, "--normals", normals, "--backend", "onnxruntime")
    assert refused.code == 2
    assert "no bfloat16 convolutions on the CPU" in refused.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--precision", "fp8"), "must be one of fp32, fp16, bf16, int8; got 'fp8'"),
        (("--precision", "int8"), "Give a folder with --normals DIR"),
        (("--precision", "int8", "--quantiser", "best"), "must be one of onnxruntime, modelopt"),
        (("--precision", "fp16", "--quantiser", "modelopt"), "is for --precision int8"),
        ((), "is a folder"),
    ],
)
def test_export_refuses_what_it_cannot_do(
    run: Command, bundle: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    result = run("export", bundle, "--out", tmp_path / "out.bundle", *arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert told in " ".join(result.err.split())
    assert not (tmp_path / "out.bundle").exists()


def test_missing_engine_asked_for_is_an_error(run: Command, bundle: Path, normals: Path) -> None:
    if obstacle_of("ort-cuda") is None:
        pytest.skip("this machine has one")
    result = run("inspect", bundle, normals, "--backend", "ort-cuda", "--out", normals / "out")
    assert result.code == 2
    assert "backend 'ort-cuda' cannot run" in result.err


def test_doctor_explains_the_chain_for_a_bundle(run: Command, bundle: Path) -> None:
    report = json.loads(run("doctor", "--json", "--bundle", bundle).out)
    chain = {finding["part"]: finding for finding in report["engine"]}
    assert list(chain) == ["tensorrt", "ort-tensorrt", "ort-cuda", "onnxruntime"]
    working = [name for name, finding in chain.items() if finding["state"] == "works"]
    assert chain[working[0]]["detail"] == "runs with --backend auto"
    assert all(finding["advice"] for finding in chain.values() if finding["state"] != "works")
    assert "gpu" in report["system"]
