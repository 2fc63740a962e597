"""Calibration from end to end on a part that its generator knows exactly."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from unblemish.bundle import Bundle, update_bundle
from unblemish.calibration.calibrate import calibrate
from unblemish.calibration.defects import paste_defect
from unblemish.calibration.metrics import dice
from unblemish.calibration.normals import SyntheticSet, choose_normals
from unblemish.errors import CalibrationError, ConfigError, SourceError, UnblemishError
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.weighting import load_weight

IMAGES = 8  # synthetic defects: one of each kind, to be quick


def _hashes(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_calibrate_makes_a_bundle_that_passes_normals_and_finds_defects(
    part_bundle, normals_dir, photograph
) -> None:
    result = calibrate(part_bundle, normals_dir, false_reject=0.01, images=16)
    assert result.calibration.normals == 40
    assert result.calibration.synthetic == 16
    assert result.calibration.dice > 0.8
    reopened = Bundle.open(part_bundle.path)
    assert reopened.manifest.calibration == result.calibration
    assert reopened.manifest.rgi.lam == result.lam
    inspector = Inspector.open(reopened)
    rng = np.random.default_rng(99)
    verdicts = [inspector.inspect(photograph(rng)).verdict for _ in range(60)]
    # 1 % of 60 is 0.6; more than 4 has a probability below 0.001.
    assert verdicts.count("fail") <= 4
    dices = []
    for _ in range(10):
        made = paste_defect(photograph(rng), rng, shape="irregular", fill="random", contrast=0.2)
        found = inspector.inspect(made.image)
        assert found.verdict == "fail"
        dices.append(dice(found.mask, made.mask))
    assert np.mean(dices) > 0.7


def test_calibrate_says_what_it_chose_and_what_it_tried(part_bundle, normals_dir) -> None:
    result = calibrate(part_bundle, normals_dir, images=IMAGES)
    lams = [trial.lam for trial in result.tuning.trials]
    assert result.lam in lams
    assert set(result.calibration.curve) == {f"{lam:.6g}" for lam in lams}
    assert len(result.normal_scores) == 40
    assert [kind.images for kind in result.kinds] == [1] * 8
    assert result.calibration.dice == pytest.approx(np.mean([kind.dice for kind in result.kinds]))
    assert result.calibration.threshold_method == "tail"
    assert result.calibration.observed_false_reject_rate == result.reject.observed_rate
    for example, kind in zip(result.examples, result.kinds, strict=True):
        assert (example.shape, example.fill) == (kind.shape, kind.fill)
        assert dice(example.mask, example.truth) == pytest.approx(example.dice)


def test_calibrate_is_deterministic_given_the_seed(part_bundle, normals_dir, tmp_path) -> None:
    copy = tmp_path / "copy.bundle"
    shutil.copytree(part_bundle.path, copy)
    first = calibrate(part_bundle, normals_dir, images=IMAGES, share=0.5, seed=5)
    second = calibrate(copy, normals_dir, images=IMAGES, share=0.5, seed=5)
    assert first.calibration == second.calibration
    assert first.lam == second.lam


def test_calibrate_agrees_with_the_inspector_on_every_mask(part_bundle, normals_dir) -> None:
    result = calibrate(part_bundle, normals_dir, images=IMAGES)
    inspector = Inspector.open(result.bundle)
    for example in result.examples:
        np.testing.assert_array_equal(inspector.inspect(example.frame).mask, example.mask)


@pytest.mark.parametrize("stage", ["lambda", "normals", "synthetic defects"])
def test_calibrate_leaves_the_bundle_as_it_was_when_stopped(
    part_bundle, normals_dir, stage
) -> None:
    before = _hashes(part_bundle.path)

    def stop(at: str, total: int | None) -> None:
        if at == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(part_bundle, normals_dir, images=IMAGES, share=0.25, progress=stop)
    assert _hashes(part_bundle.path) == before
    Bundle.open(part_bundle.path)


def test_calibrate_leaves_the_bundle_as_it_was_when_it_cannot_be_written(
    part_bundle, normals_dir, monkeypatch
) -> None:
    before = _hashes(part_bundle.path)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UnblemishError, match="No space left on device"):
        calibrate(part_bundle, normals_dir, images=IMAGES, share=0.25)
    assert _hashes(part_bundle.path) == before


_KILLED = """
import os, signal, sys
from unblemish.calibration.calibrate import calibrate

def stop(stage, total):
    if stage == "synthetic defects":
        os.kill(os.getpid(), signal.SIGKILL)

calibrate(sys.argv[1], sys.argv[2], images=8, share=0.25, progress=stop)
"""


@pytest.mark.slow
def test_calibrate_leaves_the_bundle_as_it_was_when_killed(part_bundle, normals_dir) -> None:
    before = _hashes(part_bundle.path)
    command = [sys.executable, "-c", _KILLED, str(part_bundle.path), str(normals_dir)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert _hashes(part_bundle.path) == before
    Bundle.open(part_bundle.path)


def _with_a_restless_half(folder) -> None:
    """Make the right half of every photograph a texture that the generator does not know."""
    rng = np.random.default_rng(8)
    for path in sorted(folder.iterdir()):
        frame = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float64)
        frame[:, 20:] += rng.normal(0, 30, frame[:, 20:].shape)
        cv2.imwrite(str(path), np.clip(frame, 0, 255).astype(np.uint8))


def test_calibrate_weighs_pixels_where_normals_stray_and_drops_stale_weights(
    part_bundle, normals_dir, tmp_path
) -> None:
    restless = tmp_path / "restless"
    shutil.copytree(normals_dir, restless)
    _with_a_restless_half(restless)
    result = calibrate(part_bundle, restless, images=16)
    assert "weights" in result.view
    assert result.views[result.view].dice > result.views["plain"].dice + 0.005
    assert result.calibration.weight_file == "score_weights.npy"
    weight = load_weight(Bundle.open(part_bundle.path))
    assert weight is not None
    assert weight.values[:, :12].mean() > 1.5 * weight.values[:, 20:].mean()
    calm = calibrate(result.bundle, normals_dir, images=IMAGES, share=0.5)
    assert set(calm.views) == {"plain", "level"}  # 20 normals are too few for two halves
    assert calm.calibration.weight_file is None
    reopened = Bundle.open(part_bundle.path)
    assert "score_weights.npy" not in reopened.manifest.files
    assert not (part_bundle.path / "score_weights.npy").exists()


def test_calibrate_draws_what_training_held_back(part_bundle, normals_dir) -> None:
    pytest.importorskip("torch")
    from unblemish.calibration.training.dataset import open_normals
    from unblemish.calibration.training.options import TrainOptions

    # Too small to calibrate with, but training keeps it: the draw must not shift for it.
    cv2.imwrite(str(normals_dir / "tiny.png"), np.full((8, 8), 128, np.uint8))
    options = TrainOptions(model="vae", size=32, held_back=0.3, seed=4, steps=1)
    held = [p for p in open_normals(normals_dir, options).held_back if p.name != "tiny.png"]
    assert len(held) in (11, 12)
    drawn = choose_normals(normals_dir, share=0.3, seed=4)
    assert sorted(drawn.paths) == sorted(held)


def test_calibrate_replaces_an_earlier_calibration(part_bundle, normals_dir) -> None:
    first = calibrate(part_bundle, normals_dir, images=IMAGES, share=0.5)
    second = calibrate(first.bundle, normals_dir, images=IMAGES, share=0.5, false_reject=0.3)
    assert second.calibration.image_threshold < first.calibration.image_threshold
    assert second.calibration.threshold_method == "quantile"
    assert Bundle.open(part_bundle.path).manifest.calibration == second.calibration


def test_calibrate_sets_aside_what_cannot_be_read(part_bundle, normals_dir) -> None:
    (normals_dir / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(normals_dir / "tiny.png"), np.zeros((8, 8), np.uint8))
    cv2.imwrite(str(normals_dir / "larger.png"), np.full((60, 50), 128, np.uint8))
    result = calibrate(part_bundle, normals_dir, images=IMAGES)
    assert result.calibration.normals == 41
    assert [path.name for path, _ in result.normals.rejected] == ["broken.png", "tiny.png"]
    assert "8 x 8 px" in result.normals.rejected[1][1]
    assert result.normals.sizes == ((48, 40), (60, 50))


def test_calibrate_says_what_is_wrong(part_bundle, normals_dir, tmp_path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        calibrate(part_bundle, tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="no image in"):
        calibrate(part_bundle, empty)
    with pytest.raises(CalibrationError, match="4 normal images are too few: at least 10"):
        calibrate(part_bundle, normals_dir, share=0.1)
    (empty / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match=r"1 cannot be used; the first: .*broken\.png"):
        calibrate(part_bundle, empty)
    with pytest.raises(ConfigError, match="between 0 and 1; found 1"):
        calibrate(part_bundle, normals_dir, false_reject=1)
    with pytest.raises(ConfigError, match="at least 8 synthetic images"):
        calibrate(part_bundle, normals_dir, images=3)
    with pytest.raises(ConfigError, match=r"share of normal images must lie in \(0, 1\]"):
        calibrate(part_bundle, normals_dir, share=0)
    with pytest.raises(ConfigError, match="needs 10 normal images or more; 5 were allowed"):
        calibrate(part_bundle, normals_dir, most=5)


def _rewrite(folder, change) -> None:
    for path in sorted(folder.iterdir()):
        cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))


def test_calibrate_takes_twelve_bits_in_sixteen(part_bundle, normals_dir) -> None:
    _rewrite(normals_dir, lambda frame: frame.astype(np.uint16) * 16)
    result = calibrate(part_bundle, normals_dir, images=IMAGES, share=0.25, white=4095.0)
    assert result.calibration.dice > 0.7
    assert all(example.frame.max() <= 4095 for example in result.examples)


def test_calibrate_takes_colour_for_a_grey_model(part_bundle, normals_dir) -> None:
    _rewrite(normals_dir, lambda frame: np.repeat(frame[..., None], 3, axis=2))
    result = calibrate(part_bundle, normals_dir, images=IMAGES, share=0.25)
    assert result.examples[0].frame.shape == (48, 40, 3)
    assert result.calibration.dice > 0.6


def test_calibrate_takes_tiles(part_bundle, normals_dir) -> None:
    preprocess = part_bundle.manifest.preprocess.model_copy(update={"geometry": "tiles"})
    tiled = update_bundle(part_bundle, preprocess=preprocess)
    result = calibrate(tiled, normals_dir, images=IMAGES, share=0.25)
    assert set(result.views) == {"plain", "level"}
    assert result.calibration.weight_file is None
    assert Bundle.open(tiled.path).manifest.calibration == result.calibration


def test_calibrated_bundle_keeps_white(part_bundle, tmp_path, photograph) -> None:
    """Twelve bits in sixteen: what calibration was told, inspection need not be told again."""
    rng = np.random.default_rng(5)
    for index in range(12):
        frame = photograph(rng).astype(np.uint16) * 16
        cv2.imwrite(str(tmp_path / f"{index:02d}.png"), frame)
    result = calibrate(part_bundle, tmp_path, images=8, white=4080)
    assert Bundle.open(part_bundle.path).manifest.preprocess.white == 4080
    assert result.calibration.frame_sizes == (frame.shape, frame.shape)
    frame = photograph(rng)
    with Inspector.open(result.bundle) as inspector:
        wide, plain = inspector.inspect(frame.astype(np.uint16) * 16), inspector.inspect(frame)
    assert wide.verdict == "pass"
    assert wide.image_score == pytest.approx(plain.image_score, rel=1e-3)


def test_synthetic_defects_take_white_as_inspection_does(normals_dir) -> None:
    chosen = choose_normals(normals_dir, stated=4095.0)
    samples = SyntheticSet(chosen, 16, 0, stated=4095.0)
    plain = SyntheticSet(chosen, 16, 0)
    for ours, expected in zip(samples, plain, strict=True):  # 12 bits say nothing of uint8
        np.testing.assert_array_equal(ours.image, expected.image)
