"""Cross-fitting: what a fit makes of the images it has not seen, and calibration by it."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from unblemish.bundle import Bundle, update_bundle
from unblemish.calibration.calibrate import calibrate
from unblemish.calibration.features.cross import fold_count, split_folds
from unblemish.calibration.features.fit import fit
from unblemish.calibration.features.options import DetectorMethod, FitOptions
from unblemish.calibration.report import calibration_page
from unblemish.calibration.result import CalibrationResult
from unblemish.calibration.seen import digests, seen_by
from unblemish.calibration.thresholds import reject_threshold
from unblemish.cli import create_app
from unblemish.errors import BundleError, CalibrationError
from unblemish.images import list_images, read_image
from unblemish.runtime.feature_search import FeatureSearch, Survey
from unblemish.runtime.inspector import Inspector

SIDE = 48
CHANNELS = 10
RATE = 0.05
# Medians over the images, crossed to new: measured 1.15 (peak) and 1.28 (level) for PaDiM, whose
# covariance of 12 images is worse than that of 16; 1.05 for PatchCore.
NEAR = {"padim": 1.5, "patchcore": 1.15}


def write(folder: Path, count: int, seed: int) -> Path:
    """Images of one texture with noise, 48 x 48 grey."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    texture = 120 + 40 * np.sin(x / 3) * np.cos(y / 5)
    for index in range(count):
        image = texture + rng.normal(scale=12, size=texture.shape)
        cv2.imwrite(str(folder / f"{index:02}.png"), np.clip(image, 0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature network of one convolution; cells of 4 pixels."""
    kernel = np.random.default_rng(0).standard_normal((CHANNELS, 1, 6, 6)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["cells"], strides=[4, 4], pads=[1, 1, 1, 1])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])
    y = helper.make_tensor_value_info("cells", TensorProto.FLOAT, ["n", CHANNELS, "r", "c"])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(kernel, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("network") / "net.onnx"
    onnx.save(model, path)
    return path


def options(method: DetectorMethod = "padim", folds: int | None = None) -> FitOptions:
    return FitOptions(method, size=SIDE, selected=0, share=1.0, folds=folds, steps=4, threads=1)


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("parts") / "normals", 16, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, sixteen: Path, network: Path) -> Path:
    """PaDiM of sixteen images, cross-fitted, not calibrated."""
    out = tmp_path_factory.mktemp("made") / "part.bundle"
    fit(options(), sixteen, network, out)
    return out


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(made, tmp_path / "part.bundle"))


def without_crossed(bundle: Bundle) -> Bundle:
    record = bundle.manifest.detector
    assert record is not None
    return update_bundle(bundle, detector=record.model_copy(update={"crossed": None}))


def without_digests(bundle: Bundle) -> Bundle:
    """As fitted before there were any."""
    record = without_crossed(bundle).manifest.detector
    assert record is not None
    rest = {k: v for k, v in record.statistics.items() if k != "fitted"}
    old = record.model_copy(update={"statistics": rest})
    return update_bundle(bundle, drop=(record.statistics["fitted"],), detector=old)


def calibrated(bundle: Bundle, normals: Path) -> CalibrationResult:
    with Inspector.open(bundle, refine="none", threads=1) as inspector:
        return calibrate(bundle, normals, false_reject=RATE, images=8, searcher=inspector)


def surveys(bundle: Bundle, normals: Path) -> list[Survey]:
    with Inspector.open(bundle, refine="none", threads=1) as inspector:
        return [inspector.survey(read_image(path)) for path in list_images(normals)]


@pytest.mark.parametrize(
    ("folds", "held_back", "images", "want"),
    [(None, 0.0, 2, 0), (None, 0.0, 3, 3), (None, 0.0, 7, 7), (None, 0.0, 8, 4),
     (None, 0.0, 64, 4), (None, 0.0, 65, 0), (None, 0.1, 16, 0), (4, 0.1, 400, 4), (0, 0.0, 16, 0),
     (5, 0.0, 4, 4), (2, 0.0, 4, 2), (2, 0.0, 3, 3), (2, 0.0, 2, 0)],
)  # fmt: skip
def test_fold_count(folds: int | None, held_back: float, images: int, want: int) -> None:
    assert fold_count(FitOptions("padim", folds=folds, held_back=held_back), images) == want


@pytest.mark.parametrize(("images", "folds"), [(16, 4), (18, 4), (7, 7), (3, 3)])
def test_folds_partition_the_images_by_the_seed_alone(images: int, folds: int) -> None:
    parts = split_folds(images, folds, 5)
    assert len(parts) == folds
    assert sorted(np.concatenate(parts).tolist()) == list(range(images))
    assert {len(part) for part in parts} <= {images // folds, math.ceil(images / folds)}
    for part, same in zip(parts, split_folds(images, folds, 5), strict=True):
        np.testing.assert_array_equal(part, same)


def test_another_seed_gives_other_folds() -> None:
    first = [split_folds(16, 4, seed)[0].tolist() for seed in range(5)]
    assert len({tuple(part) for part in first}) > 1


@pytest.mark.parametrize("method", ["padim", "patchcore"])
def test_crossed_surveys_are_like_those_of_new_images(
    method: DetectorMethod, sixteen: Path, network: Path, tmp_path: Path
) -> None:
    bundle = fit(options(method), sixteen, network, tmp_path / "p.bundle").bundle
    record = Bundle.open(tmp_path / "p.bundle").manifest.detector
    assert record is not None
    assert record.crossed is not None
    assert record.crossed.folds == 4
    new = surveys(bundle, write(tmp_path / "new", 24, 2))
    seen = surveys(bundle, sixteen)
    for name in ("peak", "level"):
        crossed = np.array(getattr(record.crossed, f"{name}s"))
        own, fresh = (np.array([getattr(s, name) for s in found]) for found in (seen, new))
        assert crossed.shape == (16,)
        assert np.median(crossed) > 1.2 * np.median(own)
        assert 1 / NEAR[method] < np.median(crossed) / np.median(fresh) < NEAR[method]


def test_crossed_surveys_are_those_of_fits_without_the_part(
    made: Path, sixteen: Path, network: Path, tmp_path: Path
) -> None:
    """One fold by hand: a fit of its own on a folder without the part."""
    from unblemish.calibration.features.images import open_images

    paths = open_images(sixteen, options()).paths
    part = split_folds(16, 4, 0)[0]
    rest, left = tmp_path / "rest", tmp_path / "left"
    rest.mkdir(), left.mkdir()
    for index, path in enumerate(paths):
        shutil.copy(path, left if index in part else rest)
    other = fit(options(folds=0), rest, network, tmp_path / "other.bundle").bundle
    record = Bundle.open(made).manifest.detector
    assert record is not None
    assert record.crossed is not None
    want = sorted(survey.peak for survey in surveys(other, left))
    # The same float64 moments, in another order of the images.
    np.testing.assert_allclose(sorted(record.crossed.peaks[:4]), want, rtol=1e-3)


@pytest.mark.parametrize(("count", "folds"), [(2, 0), (3, 3), (7, 7)])
def test_very_few_images(count: int, folds: int, network: Path, tmp_path: Path) -> None:
    report = fit(options(), write(tmp_path / "n", count, 3), network, tmp_path / "p.bundle")
    record = report.bundle.manifest.detector
    assert record is not None
    if folds:
        assert record.crossed is not None
        assert (record.crossed.folds, len(record.crossed.levels)) == (folds, count)
    else:
        assert record.crossed is None


def test_cflow_is_trained_anew_for_every_fold(network: Path, tmp_path: Path) -> None:
    stages: dict[str, tuple[int, int]] = {}

    def advance(stage: str, done: int, total: int) -> None:
        stages[stage] = (done, total)

    folder = write(tmp_path / "n", 8, 3)
    chosen = options("cflow", folds=2)
    report = fit(chosen, folder, network, tmp_path / "p.bundle", advance=advance)
    record = report.bundle.manifest.detector
    assert record is not None
    assert record.crossed is not None
    assert len(record.crossed.peaks) == 8
    assert stages["fold 1 of 2"] == stages["fold 2 of 2"]
    assert report.seconds["folds"] > 0


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_nothing_temporary_is_left(
    network: Path, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "n", 8, 3)
    bundle = fit(options(), folder, network, tmp_path / "p.bundle").bundle
    assert not list(scratch.iterdir())
    assert {path.name for path in bundle.path.iterdir()} == {
        "graphs", "statistics", "manifest.json",
    }  # fmt: skip
    before = (bundle.path / "manifest.json").read_bytes()
    monkeypatch.setattr(FeatureSearch, "survey", lambda *_: Survey(float("nan"), 1.0, ()))
    with pytest.raises(CalibrationError, match="--folds 0"):
        fit(options(), folder, network, tmp_path / "p.bundle")
    assert not list(scratch.iterdir())
    assert (bundle.path / "manifest.json").read_bytes() == before


def test_digests_know_the_images_whatever_they_are_called(
    bundle: Bundle, sixteen: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "mixed", 4, 9)
    for index, path in enumerate(list_images(sixteen)[:3]):
        shutil.copy(path, folder / f"a{index}.png")
    paths = list_images(folder)
    seen = seen_by(bundle, paths)
    assert [path.name[0] == "a" for path in paths] == seen.fitted.tolist()
    assert seen.count == 3
    record = bundle.manifest.detector
    assert record is not None
    stored = np.load(bundle.file(record.statistics["fitted"]))
    assert stored.dtype == np.uint64
    np.testing.assert_array_equal(stored, digests(reversed(list_images(sixteen))))


def test_damaged_digests_are_refused(bundle: Bundle, sixteen: Path) -> None:
    record = bundle.manifest.detector
    assert record is not None
    np.save(bundle.path / record.statistics["fitted"], np.zeros((2, 2), np.float32))
    with pytest.raises(BundleError, match=r"uint64 .* float32 \(2, 2\)"):
        seen_by(bundle, list_images(sixteen))


def test_calibration_on_the_fitted_images_goes_by_the_crossed_surveys(
    bundle: Bundle, sixteen: Path
) -> None:
    result = calibrated(bundle, sixteen)
    record = Bundle.open(bundle.path).manifest.detector
    assert record is not None
    assert record.crossed is not None
    peaks = np.array(record.crossed.peaks)
    assert record.normal_peak == pytest.approx(np.quantile(peaks, 0.9))
    assert record.mask_threshold == pytest.approx(np.median(peaks))
    assert record.cell_level == pytest.approx(np.median(record.crossed.levels))
    assert result.calibration.image_threshold == reject_threshold(peaks, RATE).value
    assert result.calibration.normals == 16
    assert result.seen.warning is None
    assert "16 of 16" in (result.seen.note or "")
    assert "4 fits that had not seen them" in calibration_page(result)


@pytest.mark.parametrize("refine", ["none", "initial", "f2pad"])
def test_masks_of_new_normal_images_stay_empty(
    refine: str, bundle: Bundle, sixteen: Path, tmp_path: Path
) -> None:
    """The synthetic defects lie on fitted images, whose background is far too quiet."""
    new = list_images(write(tmp_path / "new", 8, 2))
    with Inspector.open(bundle, refine=refine, threads=1) as inspector:
        result = calibrate(bundle, sixteen, false_reject=RATE, images=8, searcher=inspector)
    record = result.bundle.manifest.detector
    assert record is not None
    assert record.cell_level is not None
    least = math.sqrt(record.cell_level) if refine == "none" else 0.5
    assert result.calibration.pixel_threshold >= least
    with Inspector.open(bundle.path, threads=1) as inspector:
        flagged = [float((inspector.inspect(read_image(p)).mask > 0).mean()) for p in new]
        spoilt = read_image(new[0]).copy()
        spoilt[16:32, 12:28] = 250
        mask = inspector.inspect(spoilt).mask > 0
    assert np.mean(flagged) < 0.02
    assert mask[18:30, 14:26].mean() > 0.5


def test_new_images_count_beside_the_crossed_ones(
    bundle: Bundle, sixteen: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "new", 8, 2)
    fresh = [survey.peak for survey in surveys(bundle, folder)]
    for path in list_images(sixteen)[:4]:
        shutil.copy(path, folder / f"seen{path.name}")
    result = calibrated(bundle, folder)
    record = bundle.manifest.detector
    assert record is not None
    assert record.crossed is not None
    want = sorted([*fresh, *record.crossed.peaks])
    np.testing.assert_allclose(sorted(result.normal_scores), want, rtol=1e-5)
    assert "4 of 12" in (result.seen.note or "")


def test_new_images_alone_leave_the_crossed_ones_out(bundle: Bundle, tmp_path: Path) -> None:
    folder = write(tmp_path / "new", 10, 2)
    result = calibrated(bundle, folder)
    fresh = sorted(survey.peak for survey in surveys(bundle, folder))
    np.testing.assert_allclose(sorted(result.normal_scores), fresh, rtol=1e-5)
    assert (result.seen.warning, result.seen.note) == (None, None)


def test_fitted_images_without_crossed_surveys_give_a_warning(
    bundle: Bundle, sixteen: Path
) -> None:
    high = calibrated(bundle, sixteen).calibration.image_threshold
    result = calibrated(without_crossed(bundle), sixteen)
    assert result.seen.warning is not None
    assert "16 of 16 calibration images were fitted" in result.seen.warning
    assert "--held-back 0.1" in result.seen.warning
    assert result.calibration.image_threshold < high
    assert "16 of 16 calibration images were fitted" in calibration_page(result)


@pytest.mark.parametrize(
    ("change", "warned", "noted"),
    [(lambda bundle: bundle, False, True), (without_crossed, True, False),
     (without_digests, False, False)],
)  # fmt: skip
def test_command_says_which_images_were_fitted(
    change: Callable[[Bundle], Bundle], warned: bool, noted: bool, bundle: Bundle, sixteen: Path
) -> None:
    """The last is a bundle as older versions wrote it: it opens, and calibrates as it did."""
    change(bundle)
    asked = ["calibrate", str(bundle.path), "--normals", str(sixteen), "--refine", "none"]
    done = CliRunner().invoke(create_app(), [*asked, "--images", "8", "--false-reject", "0.05"])
    assert done.exit_code == 0, done.output
    assert ("warning: 16 of 16" in done.stderr) is warned
    assert ("fits that had not seen them" in done.stdout) is noted


@pytest.mark.parametrize("refine", ["none", "initial", "f2pad"])
def test_a_bank_that_holds_every_feature_is_calibrated_all_the_same(
    refine: str, sixteen: Path, network: Path, tmp_path: Path
) -> None:
    """Without folds the distances of the fitted images are all zero, and so are the levels."""
    fit(options("patchcore", folds=0), sixteen, network, tmp_path / "p.bundle")
    with Inspector.open(tmp_path / "p.bundle", refine=refine, threads=1) as inspector:
        result = calibrate(inspector.bundle, sixteen, false_reject=RATE, images=8,
                           searcher=inspector)  # fmt: skip
    assert result.seen.warning is not None
    assert Bundle.open(tmp_path / "p.bundle").manifest.calibration == result.calibration
