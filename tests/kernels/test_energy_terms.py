"""The terms of energy projection, every implementation against the float64 reference."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unblemish.kernels.reference import ReferenceKernels

# 1, 19 and 37 x 53 are no multiple of a vector width; 150 x 40 is more than a band of rows, and
# rows of 1100 are cut in two: patches meet.
SHAPES = [
    (1, 1, 1, 1),
    (5, 3, 1, 1),
    (1, 1, 1, 19),
    (5, 4, 19, 1),
    (5, 1, 37, 53),
    (1, 3, 37, 53),
    (2, 3, 150, 40),
    (1, 1, 9, 1100),
]
WINDOWS = [(1, 1.5), (7, 1.0), (11, 1.5), (41, 6.0)]
# Windowed means and variances in float32, 2e-7 of a window's square each, over C2 = 9e-4.
MAP = {"rtol": 0, "atol": 2e-5}
# Of the largest. Slopes by squares and by means are 2 d / C2 = 100 and more, and cancel where
# windows are flat, as those of a single pixel are.
GRADIENT = 5e-6
CANCELLED = 100.0


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def image_shape(request: pytest.FixtureRequest) -> tuple[int, int, int, int]:
    found: tuple[int, int, int, int] = request.param
    return found


@cache
def _inputs(shape: tuple[int, int, int, int]) -> Any:
    rng = np.random.default_rng(3)
    x = rng.random(shape, dtype=np.float32)
    found = SimpleNamespace(
        x=x,
        g=(x + 0.2 * rng.normal(size=shape)).astype(np.float32),
        scale=np.linspace(0.5, 2, shape[0], dtype=np.float32),
    )
    for array in vars(found).values():
        array.flags.writeable = False
    return found


def _dssim(kernels: Any, shape: Any, window: int, sigma: float) -> dict[str, Any]:
    i = _inputs(shape)
    out = {
        "dissimilarity": np.full((shape[0], 1, *shape[2:]), 7, np.float32),
        "direct": np.full(shape, 7, np.float32),
        "cotangent": np.full(shape, 7, np.float32),
        "objective": np.full(shape[0], 7.0),
    }
    kernels.dssim(i.x, i.g, i.scale, data_range=1.0, window=window, sigma=sigma, **out)
    return out


@cache
def _expected_dssim(shape: Any, window: int, sigma: float) -> dict[str, Any]:
    return _dssim(ReferenceKernels(), shape, window, sigma)


@pytest.mark.parametrize(("window", "sigma"), WINDOWS)
def test_dssim_matches_reference(kernels: Any, image_shape: Any, window: int, sigma: float) -> None:
    found, expected = (
        _dssim(kernels, image_shape, window, sigma),
        _expected_dssim(image_shape, window, sigma),
    )
    np.testing.assert_allclose(found["dissimilarity"], expected["dissimilarity"], **MAP)
    np.testing.assert_allclose(found["objective"], expected["objective"], rtol=1e-5, atol=2e-5)
    for name in ("direct", "cotangent"):
        largest = max(CANCELLED, abs(expected[name]).max())
        np.testing.assert_allclose(found[name], expected[name], atol=GRADIENT * largest)


@pytest.mark.parametrize("asked", [(), ("dissimilarity",), ("direct",), ("cotangent",)])
def test_dssim_gives_the_same_when_less_is_asked_for(kernels: Any, asked: tuple[str, ...]) -> None:
    shape = (2, 3, 70, 53)
    i, whole = _inputs(shape), _dssim(kernels, shape, 11, 1.5)
    out: dict[str, Any] = dict.fromkeys(("dissimilarity", "direct", "cotangent"))
    out |= {name: np.full_like(whole[name], 7) for name in (*asked, "objective")}
    kernels.dssim(i.x, i.g, i.scale, data_range=1.0, **out)
    for name in (*asked, "objective"):
        np.testing.assert_array_equal(out[name], whole[name])


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_dssim_holds_where_contrast_is_small(kernels: Any, reference: Any, level: float) -> None:
    """Faint texture on a bright field: variances of 1e-6 beside squares of 1."""
    rng = np.random.default_rng(4)
    x, g = (level + 1e-3 * rng.normal(size=(2, 1, 1, 80, 90))).astype(np.float32)
    maps = np.empty((2, 1, 1, 80, 90), np.float32)
    out = {"direct": None, "cotangent": None, "objective": np.empty(1)}
    one = np.ones(1, np.float32)
    for implementation, found in zip((kernels, reference), maps, strict=True):
        implementation.dssim(x, g, one, data_range=1.0, dissimilarity=found, **out)
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("y", "x"), [(0, 0), (32, 30), (63, 59)])
def test_dssim_shows_a_bad_pixel_within_its_windows(
    kernels: Any, bad: float, y: int, x: int
) -> None:
    shape = (2, 3, 64, 60)
    i = _inputs(shape)
    image = i.x.copy()
    image[1, 2, y, x] = bad
    dissimilarity = np.empty((2, 1, 64, 60), np.float32)
    direct, cotangent, objective = np.empty(shape, "f"), np.empty(shape, "f"), np.empty(2)
    out = {"dissimilarity": dissimilarity, "direct": direct, "cotangent": cotangent}
    kernels.dssim(image, i.g, i.scale, data_range=1.0, objective=objective, **out)
    rows, columns = np.ogrid[:64, :60]
    distance = np.maximum(abs(rows - y), abs(columns - x))
    assert np.isfinite(objective).tolist() == [True, False]
    np.testing.assert_array_equal(np.isfinite(dissimilarity[1, 0]), distance > 5)
    for gradient in (direct, cotangent):
        assert np.isfinite(gradient[0]).all()
        assert np.isfinite(gradient[1, :2]).all()
        np.testing.assert_array_equal(np.isfinite(gradient[1, 2]), distance > 10)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_dssim_does_not_depend_on_the_unit(kernels: Any, scale: float) -> None:
    shape = (1, 1, 37, 53)
    i, plain = _inputs(shape), _dssim(kernels, shape, 11, 1.5)
    unit = np.float32(scale)
    found = {name: np.empty_like(array) for name, array in plain.items()}
    kernels.dssim(i.x * unit, i.g * unit, i.scale, data_range=scale, **found)
    np.testing.assert_allclose(found["dissimilarity"], plain["dissimilarity"], **MAP)
    largest = abs(plain["direct"]).max()
    np.testing.assert_allclose(found["direct"] * unit, plain["direct"], atol=1e-5 * largest)
