"""Search with an autoencoder: frames of any size in, what changed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from frames import BOX, damaged, part

from unblemish.bundle import Bundle
from unblemish.calibration.calibrate import calibrate
from unblemish.calibration.metrics import best_dice
from unblemish.calibration.report import chosen_rows, scalar_name
from unblemish.errors import BackendError, BundleError, ConfigError, ShapeError
from unblemish.images import write_image
from unblemish.runtime.inspection import Status
from unblemish.runtime.inspector import Inspector

MakeBundle = Callable[..., Bundle]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize("score", ["dssim", "l2"])
def test_the_search_finds_what_the_model_cannot_make(
    make_energy_bundle: MakeBundle, channels: int, schedule: str, score: str
) -> None:
    bundle = make_energy_bundle(channels, energy={"score": score, "alpha": 2.0})
    frame = part(np.random.default_rng(0), channels=channels)
    bad = damaged(frame)
    with Inspector.open(bundle, schedule=schedule) as inspector:
        found = inspector.search(bad)
        plain = inspector.search(frame)
    inside = np.zeros((16, 16), np.bool_)
    inside[BOX] = True
    apart = 4 if score == "l2" else 2  # the window of 11 px spreads over half the image
    assert found.score[inside].mean() > apart * found.score[~inside].mean()
    assert found.score.max() > 3 * plain.score.max()
    assert found.restored.shape == bad.shape
    assert found.restored.dtype == bad.dtype
    error = np.abs(found.restored.astype(float) - frame)
    assert error[inside].mean() < 0.5 * np.abs(bad.astype(float) - frame)[inside].mean()
    assert found.status in (Status.CONVERGED, Status.MAX_STEPS)


def test_what_does_not_change_keeps_the_camera_s_detail(make_energy_bundle: MakeBundle) -> None:
    rng = np.random.default_rng(1)
    frame = np.kron(part(rng, 32, 48), np.ones((4, 4))).astype(np.uint8)
    fine = np.where(np.indices(frame.shape).sum(0) % 2, frame, frame + 6).astype(np.uint8)
    with Inspector.open(make_energy_bundle()) as inspector:
        found = inspector.search(fine)
    assert found.restored.shape == fine.shape
    assert np.abs(found.restored.astype(int) - fine).max() <= 12
    assert np.abs(np.diff(found.restored.astype(int), axis=1)).mean() > 3


def test_plain_reconstruction_and_maps_of_one_pass(make_energy_bundle: MakeBundle) -> None:
    bundle, bad = (
        make_energy_bundle(energy={"score": "l2"}),
        damaged(part(np.random.default_rng(2))),
    )
    scores = {}
    for refine in ("none", "error", "gradient", "gradient-error"):
        with Inspector.open(bundle, refine=refine) as inspector:
            found = inspector.search(bad)
        assert found.status is Status.PLAIN
        scores[refine] = found.score
    np.testing.assert_allclose(scores["error"], scores["none"] ** 2, atol=1e-5)
    np.testing.assert_allclose(  # a projector: the gradient of the error is twice the residual
        scores["gradient"], 2 * scores["none"], atol=1e-4
    )
    np.testing.assert_allclose(
        scores["gradient-error"], scores["gradient"] * scores["error"], atol=1e-5
    )
    with Inspector.open(bundle, refine="kl") as inspector, pytest.raises(ConfigError, match="VAE"):
        inspector.search(bad)


def test_many_frames_are_searched_as_each_alone(make_energy_bundle: MakeBundle) -> None:
    rng = np.random.default_rng(3)
    frames = [damaged(part(rng)) for _ in range(3)] + [part(rng, 20, 30)]
    with Inspector.open(make_energy_bundle()) as inspector:
        alone = [inspector.search(frame) for frame in frames]
        search = inspector._open()
        together = search.many(frames)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.score, other.score, atol=2e-4)
        assert one.steps == other.steps


def test_tiles_cover_a_large_frame_without_seams(make_energy_bundle: MakeBundle) -> None:
    bundle = make_energy_bundle(preprocess={"geometry": "tiles", "overlap": 0.5})
    frame = part(np.random.default_rng(4), 40, 72)
    where = (slice(17, 21), slice(30, 35))
    with Inspector.open(bundle) as inspector:
        clean, found = inspector.search(frame), inspector.search(damaged(frame, where))
    assert clean.score.max() < 0.1
    assert np.unravel_index(found.score.argmax(), frame.shape)[0] in range(15, 23)
    steps = np.abs(np.diff(clean.restored.astype(int), axis=1))
    assert steps.max() <= np.abs(np.diff(frame.astype(int), axis=1)).max() + 3


def test_an_autoencoder_is_calibrated_and_inspects(
    make_energy_bundle: MakeBundle, tmp_path: Any
) -> None:
    rng, folder = np.random.default_rng(5), tmp_path / "normals"
    folder.mkdir()
    for index in range(24):
        write_image(folder / f"{index}.png", part(rng, 32, 32))
    bundle = make_energy_bundle()
    result = calibrate(bundle, folder, images=8, false_reject=0.05)
    reopened = Bundle.open(bundle.path)
    assert reopened.manifest.energy is not None
    assert reopened.manifest.energy.lam == result.lam
    assert result.calibration.dice is not None
    assert result.calibration.dice > 0.3
    with Inspector.open(reopened) as inspector:
        assert inspector.refine == "energy"
        box = (slice(8, 16), slice(8, 18))
        assert inspector.inspect(damaged(part(rng, 32, 32), box)).verdict == "fail"


def test_a_refinement_of_another_family_is_refused(make_energy_bundle: MakeBundle) -> None:
    with pytest.raises(ConfigError, match="knows refine=energy, none"):
        Inspector.open(make_energy_bundle(), refine="f2pad")


def test_a_bundle_without_settings_says_so(make_energy_bundle: MakeBundle) -> None:
    bundle = make_energy_bundle()
    bare = Bundle(bundle.path, bundle.manifest.model_copy(update={"energy": None}))
    with Inspector.open(bare) as inspector, pytest.raises(BundleError, match="Export it again"):
        inspector.search(part(np.random.default_rng(6)))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 52)])
@pytest.mark.parametrize("channels", [1, 3])
def test_known_pixels_stay_and_the_hole_is_filled(
    make_energy_bundle: MakeBundle, channels: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(7)
    frame = part(rng, height, width, channels)
    hole = np.zeros((height, width), np.bool_)
    hole[height // 3 : height // 2, width // 4 : width // 2] = True
    noisy = frame.copy()
    noisy[hole] = rng.integers(0, 255, noisy[hole].shape, np.uint8)
    with Inspector.open(make_energy_bundle(channels)) as inspector:
        filled = inspector.inpaint(noisy, hole)
    assert filled.dtype == frame.dtype
    np.testing.assert_array_equal(filled[~hole], frame[~hole])
    before, after = (np.abs(i.astype(float) - frame)[hole].mean() for i in (noisy, filled))
    assert after < 0.15 * before


def test_a_mask_of_another_size_is_refused(
    make_energy_bundle: MakeBundle, tiny_bundle: Bundle
) -> None:
    frame, hole = part(np.random.default_rng(8)), np.zeros((8, 8), np.bool_)
    for bundle in (make_energy_bundle(), tiny_bundle):
        with Inspector.open(bundle) as inspector, pytest.raises(ShapeError, match="size"):
            inspector.inpaint(frame, hole)


@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize("size", [(40, 72), (16, 16)])
def test_holes_across_tiles_are_filled_without_seams(
    make_energy_bundle: MakeBundle, schedule: str, size: tuple[int, int]
) -> None:
    bundle = make_energy_bundle(preprocess={"geometry": "tiles", "overlap": 0.5})
    frame = part(np.random.default_rng(4), *size)
    hole = np.zeros(size, np.bool_)
    hole[size[0] // 3 : size[0] // 2, 4 : size[1] - 4] = True
    noisy = frame.copy()
    noisy[hole] = np.random.default_rng(1).integers(0, 255, hole.sum())
    with Inspector.open(bundle, schedule=schedule) as inspector:
        filled = inspector.inpaint(noisy, hole)
    np.testing.assert_array_equal(filled[~hole], frame[~hole])
    before, after = (np.abs(i.astype(float) - frame)[hole].mean() for i in (noisy, filled))
    assert after < (0.1 if schedule == "fast" else 0.4) * before


def test_a_deadline_ends_the_filling(make_energy_bundle: MakeBundle) -> None:
    frame = part(np.random.default_rng(3))
    hole = np.zeros(frame.shape, np.bool_)
    hole[4:9, 3:12] = True
    ticks = iter(np.arange(0, 100, 0.5))
    with Inspector.open(make_energy_bundle(), clock=lambda: float(next(ticks))) as inspector:
        filled = inspector.inpaint(frame, hole, deadline_ms=1.0)
    np.testing.assert_array_equal(filled[~hole], frame[~hole])
    assert filled[hole].std() < 60


@pytest.mark.parametrize("refine", ["none", "gradient"])
def test_what_has_no_lambda_is_calibrated_without(
    make_energy_bundle: MakeBundle, tmp_path: Any, refine: str
) -> None:
    rng, folder = np.random.default_rng(9), tmp_path / "normals"
    folder.mkdir()
    for index in range(12):
        write_image(folder / f"{index}.png", part(rng, 32, 32))
    bundle = make_energy_bundle(energy={"lam": 0.03})
    with Inspector.open(bundle, refine=refine) as inspector:
        result = calibrate(bundle, folder, images=8, false_reject=0.1, searcher=inspector)
    assert len(result.tuning.trials) == 1
    assert scalar_name(result) is None
    reopened = Bundle.open(bundle.path).manifest
    assert reopened.energy is not None
    assert reopened.energy.lam == 0.03
    assert result.calibration.detection_rate is not None
    assert result.calibration.detection_rate > 0.8


def test_the_steps_of_the_paper_s_schedule_are_calibrated(
    make_energy_bundle: MakeBundle, tmp_path: Any
) -> None:
    rng, folder = np.random.default_rng(10), tmp_path / "normals"
    folder.mkdir()
    for index in range(12):
        write_image(folder / f"{index}.png", part(rng))
    losses = ((0.0, 0.01), (0.5, 0.02), (1.0, 50.0))
    bundle = make_energy_bundle(energy={"alpha": 0.02, "max_steps": 40, "training_losses": losses})
    with Inspector.open(bundle, schedule="paper") as inspector:
        result = calibrate(bundle, folder, images=8, false_reject=0.1, searcher=inspector)
    chosen = result.bundle.manifest.energy
    assert chosen is not None
    assert chosen.alpha == 0.08  # too small a step: the largest one tried is the best
    assert chosen.stop_quantile in (0.0, 0.05, 0.25, 0.5)
    assert chosen.training_losses == losses
    assert Bundle.open(bundle.path).manifest.energy == chosen


def test_without_gradients_only_the_reconstruction_is_loaded(
    make_energy_bundle: MakeBundle,
) -> None:
    bundle, frame = make_energy_bundle(), part(np.random.default_rng(11))
    for role in ("reconstruct_forward", "reconstruct_backward"):
        bundle.graph(role).unlink()  # type: ignore[arg-type]
    for refine in ("energy", "none", "error"):
        with Inspector.open(bundle, refine=refine) as inspector:
            assert np.isfinite(inspector.search(damaged(frame)).score).all()
    with pytest.raises(BackendError):
        Inspector.open(bundle, schedule="paper")


def test_what_frame_and_projection_are_compared_by_is_calibrated(
    make_energy_bundle: MakeBundle, tmp_path: Any
) -> None:
    rng, folder = np.random.default_rng(12), tmp_path / "normals"
    folder.mkdir()
    for index in range(12):
        write_image(folder / f"{index}.png", part(rng))
    bundle = make_energy_bundle(energy={"score": "dssim"})
    result = calibrate(bundle, folder, images=16, false_reject=0.1)
    chosen = result.bundle.manifest.energy
    assert chosen is not None
    # The window of DSSIM is two thirds of so small an image: the residual outlines better.
    assert chosen.score == "l2"
    assert ("score", "residual", "best Dice of the score maps") in chosen_rows(result)
    frame, truth = part(rng), np.zeros((16, 16), np.bool_)
    truth[BOX] = True
    dices = {}
    for score in ("dssim", "l2"):
        with Inspector.open(result.bundle.with_energy(score=score)) as inspector:
            best = best_dice(inspector.search(damaged(frame)).score, truth)
            assert best is not None
            dices[score] = best[0]
    assert dices["l2"] > dices["dssim"]
