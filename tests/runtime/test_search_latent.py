"""The search of the code as a refinement of an autoencoder's bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from frames import BOX, damaged, part

from unblemish.bundle import Bundle
from unblemish.calibration.calibrate import calibrate
from unblemish.calibration.report import scalar_name
from unblemish.errors import BundleError
from unblemish.images import write_image
from unblemish.runtime.inspection import Status
from unblemish.runtime.inspector import Inspector

MakeBundle = Callable[..., Bundle]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_the_spot_is_found_and_the_part_restored(
    make_energy_bundle: MakeBundle, channels: int, schedule: str
) -> None:
    bundle = make_energy_bundle(channels, latent=True, energy={"score": "l2", "latent_lam": 0.01})
    frame = part(np.random.default_rng(0), channels=channels)
    bad = damaged(frame)
    with Inspector.open(bundle, refine="latent", schedule=schedule) as inspector:
        found, plain = inspector.search(bad), inspector.search(frame)
    inside = np.zeros((16, 16), np.bool_)
    inside[BOX] = True
    assert found.score[inside].min() > 3 * found.score[~inside].max()
    assert np.abs(found.restored.astype(int) - frame).mean() < 6
    assert plain.score.max() < 0.05
    assert found.z.shape == (1, 9 * channels)
    assert len(found.trace) == found.steps
    assert min(found.trace) == pytest.approx(found.objective)
    assert {"start", "forward", "backward", "search", "total"} <= found.timings.keys()


def test_l1_search_leaves_the_spot_where_the_reconstruction_blurs_it(
    make_energy_bundle: MakeBundle,
) -> None:
    bundle = make_energy_bundle(latent=True, energy={"score": "l2", "latent_lam": 0.01})
    frame = part(np.random.default_rng(1))
    errors = {}
    for refine in ("none", "latent"):
        with Inspector.open(bundle, refine=refine) as inspector:
            restored = inspector.search(damaged(frame)).restored.astype(int)
        errors[refine] = np.abs(restored - frame).mean()
    assert errors["latent"] < 0.3 * errors["none"]


def test_many_frames_are_searched_as_each_alone(make_energy_bundle: MakeBundle) -> None:
    rng = np.random.default_rng(3)
    frames = [damaged(part(rng)) for _ in range(9)] + [part(rng, 20, 30)]
    with Inspector.open(make_energy_bundle(latent=True), refine="latent") as inspector:
        alone = [inspector.search(frame) for frame in frames]
        together = inspector._open().many(frames)
    for one, other in zip(alone, together, strict=True):
        assert one.objective == pytest.approx(other.objective, rel=5e-3)
        assert one.z.shape == other.z.shape


def test_tiles_cover_a_large_frame_without_seams(make_energy_bundle: MakeBundle) -> None:
    bundle = make_energy_bundle(latent=True, preprocess={"geometry": "tiles", "overlap": 0.5})
    frame = part(np.random.default_rng(4), 40, 72)
    where = (slice(17, 21), slice(30, 35))
    with Inspector.open(bundle, refine="latent") as inspector:
        clean, found = inspector.search(frame), inspector.search(damaged(frame, where))
    assert clean.score.max() < 0.1
    assert np.unravel_index(found.score.argmax(), frame.shape)[0] in range(15, 23)
    assert len(found.z) > 8  # more than one batch
    steps = np.abs(np.diff(clean.restored.astype(int), axis=1))
    assert steps.max() <= np.abs(np.diff(frame.astype(int), axis=1)).max() + 3


def test_deadline_gives_what_was_best(make_energy_bundle: MakeBundle) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.002
        return now[0]

    bundle = make_energy_bundle(latent=True)
    frame = damaged(part(np.random.default_rng(5)))
    with Inspector.open(bundle, refine="latent", schedule="paper", clock=clock) as inspector:
        found = inspector.search(frame, deadline_ms=30)
    assert found.status is Status.DEADLINE
    assert 0 < found.steps < 20
    assert np.isfinite(found.score).all()


def test_decoder_that_gives_nan_hides_nothing(make_energy_bundle: MakeBundle) -> None:
    bundle = make_energy_bundle(latent=True, energy={"score": "l2"})
    with Inspector.open(bundle, refine="latent") as inspector:
        decoder = inspector._search._code.engines.decoder  # type: ignore[union-attr]
        forward = decoder.forward
        decoder.forward = lambda *a: forward(*a) * np.float32(np.nan)
        found = inspector.search(part(np.random.default_rng(6)))
    assert found.status is Status.NON_FINITE
    assert (found.score == 1).all()


def test_bundles_without_the_halves_say_how_to_export_them(make_energy_bundle: MakeBundle) -> None:
    with pytest.raises(BundleError, match="unblemish export CKPT --latent"):
        Inspector.open(make_energy_bundle(), refine="latent")


def test_weight_of_the_prior_is_calibrated_and_kept(
    make_energy_bundle: MakeBundle, tmp_path: Any
) -> None:
    rng, folder = np.random.default_rng(9), tmp_path / "normals"
    folder.mkdir()
    for index in range(12):
        write_image(folder / f"{index}.png", part(rng, 32, 32))
    bundle = make_energy_bundle(latent=True, energy={"lam": 0.03})
    with Inspector.open(bundle, refine="latent") as inspector:
        result = calibrate(bundle, folder, images=8, false_reject=0.1, searcher=inspector)
    energy = Bundle.open(bundle.path).manifest.energy
    assert energy is not None
    assert energy.lam == 0.03
    assert energy.latent_lam == pytest.approx(result.lam)
    assert scalar_name(result) == "lambda"
    assert (result.calibration.detection_rate or 0) > 0.8
    with Inspector.open(bundle.path) as inspector:
        assert inspector.refine == "latent"
