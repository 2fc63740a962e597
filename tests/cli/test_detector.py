"""A detector from fit to profile, by its commands alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from unblemish.bundle import Bundle
from unblemish.calibration.calibrate import calibrate
from unblemish.calibration.features.fit import fit
from unblemish.calibration.features.options import FitOptions
from unblemish.export.backbones.resnet import RESNETS, ResNet
from unblemish.runtime.inspector import Inspector

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`part.bundle`, fitted and calibrated, and `test`: a normal part and a spoilt one."""
    folder = tmp_path_factory.mktemp("detector")
    rng = np.random.default_rng(0)
    for name in ("normals", "test"):
        (folder / name).mkdir()
    for index in range(12):
        image = rng.integers(90, 120, (64, 64), np.uint8)
        cv2.imwrite(str(folder / "normals" / f"{index:02}.png"), image)
    cv2.imwrite(str(folder / "test" / "good.png"), rng.integers(90, 120, (64, 64), np.uint8))
    image[20:34, 28:44] = 250
    cv2.imwrite(str(folder / "test" / "spoilt.png"), image)
    torch.manual_seed(0)
    weights, bundle = folder / "weights.pth", folder / "part.bundle"
    torch.save(ResNet(RESNETS["resnet18"], ("layer1",)).state_dict(), weights)
    options = FitOptions("padim", size=64, layers=("layer1",), selected=8)
    fit(options, folder / "normals", weights, bundle)
    with Inspector.open(bundle, refine="f2pad", threads=1) as inspector:
        calibrate(bundle, folder / "normals", false_reject=0.05, images=8, searcher=inspector)
    return folder


def test_inspect_outlines_the_spot_and_says_how_it_was_refined(run: Command, ready: Path) -> None:
    record = Bundle.open(ready / "part.bundle").manifest
    assert record.detector is not None
    assert record.detector.normal_peak
    assert all(mixture.level for mixture in record.detector.mixtures)
    out = ready / "out"
    result = run("inspect", ready / "part.bundle", ready / "test", "--out", out)
    assert result.code == 1, result.err
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    spoilt = next(r for r in records if r["name"].startswith("spoilt"))
    assert spoilt["verdict"] == "fail"
    assert spoilt["kept_plain"] == 0
    assert {"detect", "start", "search", "assemble"} <= set(spoilt["timings"])
    box = spoilt["regions"][0]["box"]
    np.testing.assert_allclose(box, (28, 20, 16, 14), atol=3)


def test_profile_times_stages_and_crops(run: Command, ready: Path) -> None:
    asked = ("profile", ready / "part.bundle", "--images", ready / "test", "--seconds", 0.05)
    figures = json.loads(run(*asked, "--json").out)
    assert figures["refine"] == "f2pad"
    stages = figures["per_image_ms"]
    assert stages["search"]["p99"] > 0  # of the spoilt part; the normal one may need none
    assert stages["image"]["p50"] >= stages["detect"]["p50"]
    widths = [crop["width"] for crop in figures["per_crop_ms"]]
    assert widths == sorted(set(widths))
    assert widths[-1] == 64
    assert all(crop["step"]["p50"] > 0 for crop in figures["per_crop_ms"])
    text = run(*asked).out
    assert "64 x 64, step" in text
    assert "refine f2pad" in text


def test_profile_of_a_detector_asks_for_images(run: Command, ready: Path) -> None:
    for more, words in (
        ((), "--images"),
        (("--images", ready / "test", "--baseline", "torch"), "--baseline"),
    ):
        result = run("profile", ready / "part.bundle", *more)
        assert result.code == 2
        assert words in result.err
        assert "Traceback" not in result.err
