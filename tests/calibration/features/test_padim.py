"""PaDiM against NumPy and scikit-learn in float64."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from unblemish.calibration.features.moments import Moments
from unblemish.calibration.features.padim import PadimFitter, choose_channels
from unblemish.calibration.features.shrinkage import invert_lower, ledoit_wolf
from unblemish.errors import CalibrationError, ConfigError, ShapeError

Double = NDArray[np.float64]

CHANNELS, HEIGHT, WIDTH = 12, 3, 2
# Distances pass through a float32 factor whose condition is up to 1e2 here.
DISTANCE = 1e-4
# Float64 all the way, sums of some hundred terms.
EXACT = 1e-9
SMALL = 1024  # bytes: everything goes to a file and through the buffer many times


def features(images: int, seed: int = 0, offset: float = 5.0) -> NDArray[np.float32]:
    """Correlated features, (images, HEIGHT, WIDTH, CHANNELS), far from 0 as after a ReLU."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(CHANNELS, CHANNELS))
    drawn = rng.normal(size=(images, HEIGHT, WIDTH, CHANNELS)) @ mix + offset
    return drawn.astype(np.float32)


def at(stack: NDArray[np.float32], place: int) -> Double:
    return stack.reshape(len(stack), -1, CHANNELS)[:, place].astype(np.float64)


def unpack(packed: NDArray[np.float32]) -> Double:
    full = np.zeros((len(packed), CHANNELS, CHANNELS))
    rows, columns = np.tril_indices(CHANNELS)
    full[:, rows, columns] = packed
    return full


def fitted(fitter: PadimFitter, stack: NDArray[np.float32], step: int = 7) -> dict[str, Double]:
    for start in range(0, len(stack), step):
        fitter.update(stack[start : start + step])
    found = fitter.finish()
    fitter.close()
    return found.statistics


@pytest.mark.parametrize("memory", [1 << 30, SMALL])
def test_moments_match_numpy_whatever_the_memory(memory: int) -> None:
    stack = features(30)
    moments = Moments(memory=memory)
    for start in range(0, 30, 4):
        moments.update(stack[start : start + 4].reshape(-1, HEIGHT * WIDTH, CHANNELS))
    for block in moments.blocks():
        for place in range(block.start, block.stop):
            rows = at(stack, place)
            row = place - block.start
            centred = rows - rows.mean(axis=0)
            np.testing.assert_allclose(block.mean[row], rows.mean(axis=0), rtol=EXACT)
            np.testing.assert_allclose(
                block.covariance[row], np.cov(rows.T, bias=True), rtol=EXACT, atol=EXACT
            )
            fourth = ((centred**2).sum(axis=1) ** 2).mean()
            np.testing.assert_allclose(block.fourth[row], fourth, rtol=EXACT)
    moments.close()


def test_moments_do_not_cancel_when_features_lie_far_from_zero() -> None:
    stack = features(30, offset=0.0) * np.float32(1e-2) + np.float32(100.0)
    moments = Moments()
    moments.update(stack.reshape(30, -1, CHANNELS))
    (block,) = moments.blocks()
    want = np.cov(at(stack, 0).T, bias=True)
    np.testing.assert_allclose(block.covariance[0], want, rtol=1e-6, atol=1e-9 * want.max())


def test_moments_refuse_features_of_another_shape() -> None:
    moments = Moments()
    moments.update(features(2).reshape(2, -1, CHANNELS))
    with pytest.raises(ShapeError, match="expected features"):
        moments.update(features(2).reshape(2, -1, CHANNELS)[:, 1:])


@pytest.mark.parametrize("images", [3, 16, 200])
def test_ledoit_wolf_matches_scikit_learn(images: int) -> None:
    rows = at(features(images), 0)
    centred = rows - rows.mean(axis=0)
    fourth = np.array([((centred**2).sum(axis=1) ** 2).mean()])
    share = ledoit_wolf(np.cov(rows.T, bias=True)[None], fourth, images)
    assert share[0] == pytest.approx(LedoitWolf().fit(rows).shrinkage_, rel=EXACT)


@pytest.mark.parametrize("images", [4, 16, 100])
@pytest.mark.parametrize("memory", [1 << 30, SMALL])
def test_padim_distance_matches_scikit_learn(images: int, memory: int) -> None:
    stack = features(images)
    out = fitted(PadimFitter(shrinkage="ledoit-wolf", memory=memory), stack)
    probe = features(1, seed=1)
    for place in range(HEIGHT * WIDTH):
        model = LedoitWolf().fit(at(stack, place))
        want = model.mahalanobis(at(probe, place))[0]
        apart = at(probe, place)[0] - out["mean"][place]
        got = np.sum((unpack(out["whitening"])[place] @ apart) ** 2)
        assert got == pytest.approx(want, rel=DISTANCE)


def test_padim_epsilon_adds_to_the_variances() -> None:
    stack = features(50)
    out = fitted(PadimFitter(shrinkage="epsilon", epsilon=0.5), stack)
    apart = np.arange(CHANNELS, dtype=np.float64)
    inverse = np.linalg.inv(np.cov(at(stack, 3).T, bias=True) + 0.5 * np.eye(CHANNELS))
    got = np.sum((unpack(out["whitening"])[3] @ apart) ** 2)
    assert got == pytest.approx(apart @ inverse @ apart, rel=DISTANCE)


def test_padim_low_rank_is_exact_when_images_are_fewer_than_channels() -> None:
    stack = features(6)
    full = fitted(PadimFitter(), stack)
    low = fitted(PadimFitter(rank=5), stack)
    probe = at(features(1, seed=2), 1)[0]
    apart = probe - full["mean"][1]
    want = np.sum((unpack(full["whitening"])[1] @ apart) ** 2)
    along = low["basis"][1].astype(np.float64).T @ apart
    got = low["inverse_variance"][1] * (apart @ apart - along @ along)
    assert low["basis"].shape == (HEIGHT * WIDTH, CHANNELS, 5)
    assert got == pytest.approx(want, rel=DISTANCE)


@pytest.mark.parametrize("images", [9, 100])
def test_padim_low_rank_keeps_the_total_variance(images: int) -> None:
    stack = features(images)
    low = fitted(PadimFitter(rank=4, epsilon=0.1), stack)
    basis = low["basis"][0].astype(np.float64)
    precision = low["inverse_variance"][0] * (np.eye(CHANNELS) - basis @ basis.T)
    want = np.trace(np.cov(at(stack, 0).T, bias=True)) + 0.1 * CHANNELS
    assert np.trace(np.linalg.inv(precision)) == pytest.approx(want, rel=DISTANCE)


@pytest.mark.parametrize("shrinkage", ["epsilon", "ledoit-wolf"])
def test_padim_low_rank_does_not_depend_on_the_memory(shrinkage: Literal["epsilon"]) -> None:
    """Few images at hand go by their products with each other, the sums by the covariance."""
    stack = features(9)
    some, none = (
        fitted(PadimFitter(rank=8, shrinkage=shrinkage, memory=memory), stack)
        for memory in (1 << 30, SMALL)
    )
    for place in range(HEIGHT * WIDTH):
        a, b = (s["basis"][place].astype(np.float64) for s in (some, none))
        np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-5)  # signs are free
    np.testing.assert_allclose(some["inverse_variance"], none["inverse_variance"], rtol=1e-5)


def test_padim_is_finite_when_a_place_never_changes() -> None:
    stack = features(20)
    stack[:, 0, 0] = 3.0  # a flat background
    stack[..., 4] = 0.0  # a dead channel
    for fitter in (PadimFitter(), PadimFitter(rank=5), PadimFitter(shrinkage="ledoit-wolf")):
        assert all(np.isfinite(array).all() for array in fitted(fitter, stack).values())


def test_padim_is_finite_when_all_images_are_the_same() -> None:
    stack = np.repeat(features(1), 5, axis=0)
    for fitter in (PadimFitter(shrinkage="ledoit-wolf"), PadimFitter(rank=3)):
        assert all(np.isfinite(array).all() for array in fitted(fitter, stack).values())


@pytest.mark.parametrize("images", [0, 1])
def test_padim_refuses_too_few_images(images: int) -> None:
    fitter = PadimFitter()
    if images:
        fitter.update(features(images))
    with pytest.raises(CalibrationError, match="2 normal images"):
        fitter.finish()


def test_padim_refuses_features_that_are_not_finite() -> None:
    stack = features(3)
    stack[1, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        PadimFitter().update(stack)


def test_padim_keeps_no_reference_to_the_features() -> None:
    stack = features(20)
    fitter = PadimFitter()
    buffer = stack[:10].copy()
    fitter.update(buffer)
    buffer[:] = stack[10:]
    fitter.update(buffer)
    np.testing.assert_array_equal(
        fitter.finish().statistics["whitening"], fitted(PadimFitter(), stack, 10)["whitening"]
    )


@pytest.mark.parametrize("settings", [{"epsilon": 0.0}, {"rank": 0}, {"shrinkage": "ridge"}])
def test_padim_refuses_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        PadimFitter(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 16, 17, 53])
def test_invert_lower_inverts(size: int) -> None:
    rng = np.random.default_rng(size)
    lower = np.tril(rng.normal(size=(3, size, size))) + 4 * np.sqrt(size) * np.eye(size)
    found = invert_lower(lower)
    np.testing.assert_allclose(
        found @ lower, np.broadcast_to(np.eye(size), lower.shape), atol=1e-12
    )
    assert not np.triu(found, 1).any()


def test_choose_channels_draws_without_repetition() -> None:
    drawn = choose_channels(448, 100, seed=3)
    assert drawn == sorted(set(drawn)) == choose_channels(448, 100, seed=3)
    assert len(drawn) == 100
    assert max(drawn) < 448
    assert drawn != choose_channels(448, 100, seed=4)
    assert choose_channels(5, None, seed=0) == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="448"):
        choose_channels(448, 449, seed=0)
