"""Bundles in another precision, and the gate they pass or fail."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from unblemish.bundle import Bundle, update_bundle
from unblemish.calibration.precision.convert import convert_precision, feeds_of, record
from unblemish.calibration.precision.gate import TOLERANCES, Drift, Judged, Sample, Tolerance
from unblemish.errors import CalibrationError, ConfigError, ModelError
from unblemish.onnx_files import read_onnx
from unblemish.runtime.inspector import Inspector

GENEROUS = Tolerance(dice_drop=1, mask_dice=0, image_rmse=1, verdicts=1)


@pytest.fixture
def samples() -> list[Sample]:
    """Two flat frames, one with a dark square."""
    clean = np.full((48, 40, 1), 0.5, np.float32)
    dark, truth = clean.copy(), np.zeros((48, 40), np.bool_)
    truth[10:20, 10:20] = True
    dark[truth] = 0.1
    return [Sample(clean, None), Sample(dark, truth)]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_convert_writes_a_bundle_that_says_its_precision(
    part_bundle: Bundle, normals_dir: Path, tmp_path: Path, precision: str
) -> None:
    made = convert_precision(part_bundle, precision, normals_dir, tmp_path / "out.bundle", images=8)
    opened = Bundle.open(tmp_path / "out.bundle")
    assert opened.manifest.precision == precision
    assert opened.manifest.parity[f"{precision}_image_rmse"] == made.drift.image_rmse
    # One Gemm of 4 products near 0.5, rounded: a few units of 2^-12 or 2^-9.
    assert 0 < made.drift.image_rmse < {"fp16": 1e-3, "bf16": 8e-3}[precision]
    assert opened.manifest.calibration == part_bundle.manifest.calibration
    kinds = {t.data_type for t in read_onnx(opened.graph("generator")).graph.initializer}
    assert kinds == {1, 7}  # the master for fine-tuning is as it was
    assert Bundle.open(part_bundle.path).manifest.precision == "fp32"


def test_float16_bundle_is_searched_on_the_cpu(
    part_bundle: Bundle, normals_dir: Path, tmp_path: Path, samples: list[Sample]
) -> None:
    convert_precision(part_bundle, "fp16", normals_dir, tmp_path / "out.bundle", images=8)
    with Inspector.open(tmp_path / "out.bundle") as inspector:
        found = inspector.search(samples[1].frame)
    with Inspector.open(part_bundle) as inspector:
        expected = inspector.search(samples[1].frame)
    np.testing.assert_allclose(found.restored, expected.restored, atol=2e-3)  # 4 units of 2^-11


def test_record_takes_latents_of_normal_images_and_their_siblings_share_them(
    part_bundle: Bundle, samples: list[Sample]
) -> None:
    tapes = record(part_bundle, samples[:1])
    assert set(tapes) == {"generator_forward"}
    plain = read_onnx(part_bundle.graph("generator"))
    feeds = feeds_of(tapes, "generator", plain)
    assert len(feeds) == len(tapes["generator_forward"]) > 1
    assert feeds[0]["z"].shape[1] == 4


def test_int8_refuses_a_graph_that_no_normal_image_went_through(
    part_bundle: Bundle, normals_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unblemish.calibration.precision import convert
    from unblemish.export.precision import quantise

    monkeypatch.setattr(convert, "record", lambda bundle, plain: {})
    monkeypatch.setattr(quantise, "choose_nodes", lambda model: (["x"], []))
    with pytest.raises(CalibrationError, match="normal images"):
        convert_precision(part_bundle, "int8", normals_dir, tmp_path / "out.bundle", images=8)
    assert not (tmp_path / "out.bundle").exists()


def test_int8_refuses_a_model_with_nothing_between_first_and_last(
    part_bundle: Bundle, normals_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"nothing in bundle .* can be int8"):
        convert_precision(part_bundle, "int8", normals_dir, tmp_path / "out.bundle", images=8)
    assert not (tmp_path / "out.bundle").exists()


def test_convert_refuses_what_is_not_float32(
    part_bundle: Bundle, normals_dir: Path, tmp_path: Path
) -> None:
    half = update_bundle(part_bundle, precision="fp16")
    with pytest.raises(ConfigError, match="is fp16 and cannot be made 'int8'"):
        convert_precision(half, "int8", normals_dir, tmp_path / "out.bundle")


def test_gate_refuses_a_drift_with_its_number_and_writes_nothing(
    part_bundle: Bundle, normals_dir: Path, tmp_path: Path
) -> None:
    strict = Tolerance(dice_drop=1, mask_dice=0, image_rmse=1e-9, verdicts=1)
    with pytest.raises(ModelError, match=r"fp16 the figure image_rmse is .*at most 1e-09"):
        convert_precision(
            part_bundle, "fp16", normals_dir, tmp_path / "out.bundle", images=8, tolerance=strict
        )
    assert not (tmp_path / "out.bundle").exists()


@pytest.mark.parametrize("name", ["dice_drop", "mask_dice", "image_rmse", "verdicts"])
def test_every_figure_can_fail_the_gate(name: str) -> None:
    good = Drift(0.9, 0.0, 1.0, 0.0, 0.0, 240.0, 0.0)
    good.check("int8", TOLERANCES["int8"])
    fields = {**good.__dict__, name: 0.5}
    with pytest.raises(ModelError, match=name):
        Drift(**fields).check("int8", TOLERANCES["int8"])
    with pytest.raises(ModelError, match=name):
        Drift(**{**fields, name: math.nan}).check("int8", TOLERANCES["int8"])


def test_gate_finds_no_drift_of_a_bundle_from_itself(
    part_bundle: Bundle, samples: list[Sample]
) -> None:
    found = Judged(part_bundle, samples).drift(part_bundle)
    assert (found.dice_drop, found.mask_dice, found.image_max, found.verdicts) == (0, 1, 0, 0)
    assert found.psnr == 240


def test_gate_measures_a_known_change(part_bundle: Bundle, samples: list[Sample]) -> None:
    """A generator whose images are 0.1 brighter restores what it restores 0.1 brighter."""
    from onnx import numpy_helper

    files = {}
    for role in ("generator_forward",):
        model = read_onnx(part_bundle.graph(role))
        (mean,) = [t for t in model.graph.initializer if t.dims == [1024]]
        mean.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(mean) + np.float32(0.1), mean.name)
        )
        files[part_bundle.manifest.graphs[role].file] = model.SerializeToString()
    judged = Judged(part_bundle, samples)
    changed = update_bundle(part_bundle, files=files)
    found = judged.drift(changed)
    # The mean is not among the four modes, which can take back a little of it.
    assert 0.02 < found.image_rmse < 0.11
    assert found.psnr == pytest.approx(-20 * math.log10(found.image_rmse))
    assert found.verdicts > 0
