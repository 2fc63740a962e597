"""Training of CFLOW-AD's flows on features whose law is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from unblemish.calibration.features import flow_training
from unblemish.calibration.features.cflow import CflowFitter
from unblemish.calibration.features.flow_training import (
    Training,
    train,
    typical,
    typical_places,
    whiten,
)
from unblemish.errors import CalibrationError, ConfigError
from unblemish.export.models.flow import ConditionalFlow

GRID = (6, 8)
MAPS = ((6, 4), (4, 8))
SHORT = Training(steps=30)


def texture(images: int, seed: int = 0, channels: int = 6) -> np.ndarray:
    """Feature maps (n, h, w, c) whose mean is the place's and whose axes hang together, bent."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: GRID[0], : GRID[1]]
    mean = np.stack([np.sin(y / 2 + k) + np.cos(x / 2 - k) for k in range(channels)], axis=2)
    noise = 0.2 * rng.standard_normal((images, *GRID, channels))
    noise[..., -1] += 3 * noise[..., 0] ** 2
    found: np.ndarray = (mean + noise).astype(np.float32)
    return found


def maps_of(images: int, seed: int = 0) -> np.ndarray:
    """Two maps as the extractor gives them: the coarser one repeated on the finest cells."""
    fine = texture(images, seed)
    coarse = texture(images, seed + 100)[:, ::2, ::2, :4].repeat(2, axis=1).repeat(2, axis=2)
    return np.concatenate([fine, coarse], axis=3)


def fitted(features: np.ndarray, training: Training = SHORT, **more: Any) -> CflowFitter:
    fitter = CflowFitter(MAPS, blocks=3, training=training, **more)
    for part in np.array_split(features, min(3, len(features))):
        fitter.update(part)
    fitter.finish()
    return fitter


def test_whiten_makes_vectors_standard_normal() -> None:
    rows = texture(50).reshape(-1, 6) * np.float32(40) + np.float32(7)
    flow = ConditionalFlow(6, GRID)
    whiten(flow, rows)
    z = (rows - flow.mean.numpy()) @ flow.whitening.numpy().T
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    found = np.cov(z.T)
    # A ridge of 1 % of the mean variance makes small directions shorter, never longer.
    assert np.linalg.eigvalsh(found).max() == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=0.05)


def test_whiten_takes_features_that_are_all_the_same() -> None:
    flow = ConditionalFlow(3, GRID)
    whiten(flow, np.full((40, 3), 2, np.float32))
    assert np.isfinite(flow.whitening.numpy()).all()


def test_training_finds_images_kept_apart_likelier() -> None:
    rows, apart = texture(40).reshape(-1, 6), np.arange(0, 40, 5)
    flow = ConditionalFlow(6, GRID, blocks=4)
    whiten(flow, np.delete(texture(40), apart, axis=0).reshape(-1, 6))
    before = typical(flow, rows, apart)
    train(flow, rows, Training(steps=300, noise=0.1), apart=apart)
    # Where the mean is the place's, a vector's spread falls from about 1 to 0.2: log 5 = 1.6.
    assert typical(flow, rows, apart) > before + 0.5


def test_kept_images_are_not_trained_on() -> None:
    images, apart = texture(12), np.array([0, 4, 5, 11])
    flow = ConditionalFlow(6, GRID, blocks=2)
    whiten(flow, images.reshape(-1, 6))
    images[apart] = np.nan  # a vector of these in any batch would end the training
    train(flow, images.reshape(-1, 6), SHORT, apart=apart)
    with pytest.raises(CalibrationError):
        train(flow, images.reshape(-1, 6), SHORT)


def test_weights_that_find_kept_images_likeliest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = texture(12).reshape(-1, 6)
    flow, looks = ConditionalFlow(6, GRID, blocks=2), iter((-3.0, -1.0, -2.0))
    whiten(flow, rows)
    seen = []

    def look(one: ConditionalFlow, *_: Any) -> float:
        seen.append({name: t.clone() for name, t in one.state_dict().items()})
        return next(looks)

    monkeypatch.setattr(flow_training, "typical", look)
    train(flow, rows, Training(steps=150), apart=np.array([7]))
    assert len(seen) == 3
    state = flow.state_dict()
    assert all(torch.equal(state[name], seen[1][name]) for name in state)
    assert any(not torch.equal(state[name], seen[2][name]) for name in state)


def test_typical_is_the_median_of_the_images_named() -> None:
    images = texture(5)
    rows, named = images.reshape(-1, 6), np.array([1, 4])
    flow = ConditionalFlow(6, GRID)
    whiten(flow, rows)
    d = (images[named].reshape(-1, 6) - flow.mean.numpy()) @ flow.whitening.numpy().T
    logdet = np.log(np.diag(flow.whitening.numpy())).sum()
    want = (logdet - 0.5 * (d**2).sum(axis=1)) / 6 - 0.5 * math.log(2 * math.pi)
    assert typical(flow, rows, named) == pytest.approx(float(np.median(want)), abs=1e-5)


def test_typical_places_are_medians_of_each_place() -> None:
    images = texture(9)
    images[:, 0, 3] *= 3  # a place that is odd in every image
    rows = images.reshape(-1, 6)
    flow = ConditionalFlow(6, GRID)
    whiten(flow, rows)
    found = typical_places(flow, rows, np.arange(9))
    d = (rows - flow.mean.numpy()) @ flow.whitening.numpy().T
    logdet = np.log(np.diag(flow.whitening.numpy())).sum()
    each = (logdet - 0.5 * (d**2).sum(axis=1)) / 6 - 0.5 * math.log(2 * math.pi)
    want = np.median(each.reshape(9, *GRID), axis=0)
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert found[0, 3] == found.min()


def test_typical_of_the_bundle_has_the_median_of_images_kept_apart() -> None:
    fitter = CflowFitter(MAPS, blocks=3, training=SHORT)
    fitter.update(maps_of(20))
    done = fitter.finish()
    stated = dict(done.facts)["log-likelihood per channel"]
    usual = done.statistics["typical"]
    halves = (np.median(usual[:48]), np.median(usual[48:]))
    assert stated.startswith(", ".join(f"{value:.2f}" for value in halves))


def test_fitter_learns_every_map_at_its_own_cells() -> None:
    fitter = fitted(maps_of(10))
    assert [flow.grid for flow in fitter.flows] == [(6, 8), (3, 4)]
    assert [flow.channels for flow in fitter.flows] == [6, 4]
    rows = maps_of(10)[:, ::2, ::2, 6:].reshape(-1, 4)
    np.testing.assert_allclose(fitter.flows[1].mean.numpy(), rows.mean(axis=0), atol=1e-5)


def test_fitter_states_typical_and_facts() -> None:
    fitter = CflowFitter(MAPS, blocks=3, training=SHORT)
    fitter.update(maps_of(10))
    done = fitter.finish()
    usual = done.statistics["typical"]
    assert usual.dtype == np.float32
    assert usual.shape == (6 * 8 + 3 * 4,)
    facts = dict(done.facts)
    assert facts["flows"] == "3 couplings each, for maps 6x8 of 6 channels, 3x4 of 4 channels"
    assert "on 1 images kept apart" in facts["log-likelihood per channel"]
    assert not any(weight.requires_grad for flow in fitter.flows for weight in flow.parameters())


def test_fitting_is_the_same_again_and_another_with_another_seed() -> None:
    def weights(training: Training, seed: int) -> list[torch.Tensor]:
        flows = fitted(maps_of(6), training, seed=seed).flows
        return [t for flow in flows for t in flow.state_dict().values()]

    first, again, other = (weights(Training(steps=20, seed=s), s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("images", [2, 7, 16])
def test_few_images_are_enough(images: int) -> None:
    fitter = CflowFitter(MAPS, blocks=2, training=SHORT)
    fitter.update(maps_of(images))
    done = fitter.finish()
    assert np.isfinite(done.statistics["typical"]).all()
    where = "kept apart" if images >= 8 else "on the images trained on"
    assert where in dict(done.facts)["log-likelihood per channel"]


@pytest.mark.parametrize("images", [0, 1])
def test_one_image_is_not_enough(images: int) -> None:
    fitter = CflowFitter(MAPS)
    if images:
        fitter.update(maps_of(images))
    with pytest.raises(CalibrationError, match="CFLOW-AD learns how normal parts vary"):
        fitter.finish()


def test_features_that_are_not_finite_are_refused() -> None:
    spoilt = maps_of(2)
    spoilt[1, 3, 3, 2] = np.nan
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        CflowFitter(MAPS).update(spoilt)


def test_training_that_diverges_says_what_to_do() -> None:
    rows = texture(4).reshape(-1, 6)
    flow = ConditionalFlow(6, GRID, blocks=2)
    whiten(flow, rows)
    with pytest.raises(CalibrationError, match="lower --learning-rate"):
        train(flow, rows, Training(steps=200, rate=1e20))


def test_a_last_step_that_diverges_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(adam: torch.optim.Adam) -> None:
        with torch.no_grad():
            adam.param_groups[0]["params"][0].fill_(math.nan)

    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    rows = texture(4).reshape(-1, 6)
    flow = ConditionalFlow(6, GRID, blocks=2)
    whiten(flow, rows)
    with pytest.raises(CalibrationError, match="lower --learning-rate"):
        train(flow, rows, Training(steps=1))


@pytest.mark.parametrize(("maps", "blocks"), [((), 8), (((1, 4),), 8), (MAPS, 0)])
def test_settings_that_make_no_flow_are_refused(
    maps: tuple[tuple[int, int], ...], blocks: int
) -> None:
    with pytest.raises(ConfigError):
        CflowFitter(maps, blocks=blocks)


def test_features_beyond_the_memory_lie_on_disk_and_give_the_same() -> None:
    kept, spilled = fitted(maps_of(6)), CflowFitter(MAPS, blocks=3, training=SHORT, memory=4000)
    for part in np.array_split(maps_of(6), 3):
        spilled.update(part)
    assert all(rows.on_disk for rows in spilled._rows)
    spilled.finish()
    for a, b in zip(kept.flows, spilled.flows, strict=True):
        assert all(torch.equal(a.state_dict()[n], t) for n, t in b.state_dict().items())
    spilled.close()
    spilled.close()


def test_progress_rises_to_its_total() -> None:
    seen: list[tuple[str, int, int]] = []
    fitter = CflowFitter(MAPS, blocks=2, training=SHORT)
    fitter.update(maps_of(3))
    fitter.finish(lambda stage, done, total: seen.append((stage, done, total)))
    assert {stage for stage, _, _ in seen} == {"training"}
    done = [number for _, number, _ in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][2] == 200


def test_training_ends_within_the_time_given(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(np.arange(0, 1e6, 1.0))
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    steps = 0

    def step(share: float) -> None:
        nonlocal steps
        steps += 1

    rows = texture(4).reshape(-1, 6)
    flow = ConditionalFlow(6, GRID, blocks=2)
    whiten(flow, rows)
    train(flow, rows, Training(steps=1000), seconds=20, step=step)
    assert 15 <= steps <= 21
