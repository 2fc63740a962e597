"""AnoGAN as a refinement: what it finds, where it begins, what it needs, and its calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish import Inspector, Status
from unblemish.bundle import Bundle
from unblemish.calibration.calibrate import calibrate
from unblemish.errors import BundleError, ConfigError
from unblemish.images import write_image
from unblemish.runtime.options import SearchOptions
from unblemish.runtime.search import Search

Part = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
MakeBundle = Callable[..., Bundle]


def test_the_planted_defect_is_found(rich_bundle: Bundle, part: Part) -> None:
    frame, clean, truth = part
    with Inspector.open(rich_bundle, threads=1, refine="anogan") as inspector:
        inspection = inspector.inspect(frame)
    np.testing.assert_array_equal(inspection.mask, truth)
    assert inspection.verdict == "fail"
    np.testing.assert_allclose(inspection.restored, clean, atol=0.03)
    residual = np.sqrt(np.square(frame - inspection.restored).mean(axis=2))
    np.testing.assert_allclose(inspection.score, residual, atol=1e-5)


def test_objective_is_residual_and_features_and_no_other_term(
    make_bundle: MakeBundle, part: Part
) -> None:
    """The penalty, the perceptual loss and the prior of the bundle belong to RGI."""
    rgi = {"discriminator_weight": 0.5, "feature_weight": 0.5, "latent_weight": 0.5}
    bundle = make_bundle(extras=True, rgi={**rgi, "anogan_weight": 0.4})
    search = Search(bundle, SearchOptions(threads=1, refine="anogan"))
    found = search(part[0])
    image = search._engines.generate(found.z)
    x = part[0].transpose(2, 0, 1)[None]
    pair = search._critic
    assert pair is not None
    seen = [np.array(pair.forward({"image": i})["features"]) for i in (x, image)]
    energy = abs(x - image).sum() + 0.4 * abs(seen[0] - seen[1]).sum()
    assert found.objective == pytest.approx(energy / x.size, rel=1e-4)
    assert not found.mask.any()
    assert search(part[0], lam=0.8).objective > found.objective


def test_paper_takes_500_steps_from_one_random_latent(rich_bundle: Bundle, part: Part) -> None:
    options = SearchOptions(threads=1, refine="anogan", schedule="paper")
    search = Search(rich_bundle, options)
    found = search(part[0])
    assert (found.steps, found.status) == (500, Status.MAX_STEPS)
    assert search._starter.bank is not None
    (drawn,) = search._starter.bank.latents
    began = Search(rich_bundle, SearchOptions(threads=1, refine="none"))._engines.generate(
        drawn[None]
    )
    x = part[0].transpose(2, 0, 1)[None]
    assert found.trace[0] >= abs(x - began).mean()
    fast = Search(rich_bundle, SearchOptions(threads=1, refine="anogan"))(part[0])
    assert fast.steps <= 100
    assert fast.objective <= 1.02 * found.objective


def test_tiles_and_batches_of_grey_frames(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(channels=1, extras=True, preprocess={"geometry": "tiles", "overlap": 0.5})
    search = Search(bundle, SearchOptions(threads=1, refine="anogan", max_steps=8))
    frames = [np.full((40, 27, 3), grey, np.uint8) for grey in (60, 90, 120)]
    together = search.many(frames)
    for frame, one in zip(frames, together, strict=True):
        alone = search(frame)
        assert one.restored.shape == (40, 27)
        assert len(one.z) == search._geometry.tiles((40, 27)) > 1
        assert one.objective == pytest.approx(alone.objective, rel=0.05)


def test_deadline_ends_it(rich_bundle: Bundle, part: Part) -> None:
    options = SearchOptions(threads=1, refine="anogan", schedule="paper")
    found = Search(rich_bundle, options)(part[0], deadline_ms=40)
    assert found.status is Status.DEADLINE
    assert found.steps < 500
    assert np.isfinite(found.score).all()


def test_bundles_without_the_layer_are_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"--discriminator-layer 4"):
        Inspector.open(tiny_bundle, refine="anogan")


def test_bundles_of_another_family_are_refused(make_energy_bundle: MakeBundle) -> None:
    with pytest.raises(ConfigError, match="knows refine=energy"):
        Inspector.open(make_energy_bundle(), refine="anogan")


def test_weight_of_the_features_is_calibrated_and_kept(
    make_bundle: MakeBundle, generate: Any, tmp_path: Any
) -> None:
    bundle, folder = make_bundle(extras=True, calibrated=False), tmp_path / "normals"
    folder.mkdir()
    for index, z in enumerate(np.random.default_rng(0).standard_normal((12, 4))):
        image = np.rint(255 * generate(z[None])[0].transpose(1, 2, 0)).astype(np.uint8)
        write_image(folder / f"{index}.png", np.kron(image, np.ones((2, 2, 1), np.uint8)))
    with Inspector.open(bundle, threads=1, refine="anogan", max_steps=25) as inspector:
        result = calibrate(bundle, folder, images=8, false_reject=0.1, searcher=inspector)
    manifest = Bundle.open(bundle.path).manifest
    assert manifest.rgi.anogan_weight == pytest.approx(result.lam)
    assert manifest.rgi.lam == bundle.manifest.rgi.lam
    assert len(result.tuning.trials) >= 5
    assert (result.calibration.dice or 0) > 0.3
    with Inspector.open(bundle.path, threads=1) as inspector:
        assert inspector.refine == "anogan"
