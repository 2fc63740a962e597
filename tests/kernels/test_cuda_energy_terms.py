"""The CUDA drivers of energy projection, emulated on the host, against the float64 reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.kernels.reference.dssim import dssim

GRID = (3, 2)  # blocks per item, items at once: fewer than the batch, so that both loops stride
# As for the CPU kernels: windowed variances in float32 over C2 = 9e-4, slopes of 100 that cancel.
MAP = {"rtol": 0, "atol": 2e-5}
GRADIENT = 5e-6
CANCELLED = 100.0

SHAPES = [(1, 1, 1, 1), (3, 3, 9, 11), (2, 1, 1, 19), (2, 1, 19, 1), (3, 1, 37, 52)]

Launch = Callable[..., None]


class DssimConstants(ctypes.Structure):
    """`unblemish::DssimConstants`."""

    _fields_ = [(name, ctypes.c_float) for name in ("range", "c1", "c2")]


@pytest.fixture(scope="module")
def launch(emulation: Callable[[str], Launch]) -> Launch:
    """launch('kernel', grid, *arguments) on the host."""
    return emulation("emulate_energy_terms.cpp")


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int, int]:
    found: tuple[int, int, int, int] = request.param
    return found


def _images(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.random(shape, dtype=np.float32)
    g = (x + 0.2 * rng.normal(size=shape)).astype(np.float32)
    return x, g, np.linspace(0.5, 2, shape[0], dtype=np.float32)


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (31, 4.0)])
def test_dssim_drivers_match_reference(
    launch: Launch, shape: tuple[int, int, int, int], window: int, sigma: float
) -> None:
    x, g, scale = _images(shape)
    batch, channels, *size = shape
    offsets = np.arange(window) - window // 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    sizes = [ctypes.c_int(value) for value in shape]
    slopes = np.full((batch, channels, 4, *size), np.nan, np.float32)
    found = np.full((batch, 1, *size), np.nan, np.float32)
    direct, cotangent = np.full((2, *shape), np.nan, np.float32)
    partial, objective = np.full((batch, GRID[0]), np.nan), np.full(batch, np.nan)
    given = (weights, ctypes.c_int(window // 2))
    constants = DssimConstants(1.0, 1e-4, 9e-4)
    launch("dssim", GRID, x, g, *given, constants, slopes, found, partial, *sizes)
    share = scale / np.float32(channels)
    launch("finish_sum", (batch, 1), partial, share, objective, ctypes.c_int(GRID[0]))
    launch("dssim_gradient", GRID, x, g, *given, slopes, scale, direct, cotangent, *sizes)
    expected = dssim(x, g, scale, data_range=1.0, window=window, sigma=sigma)
    np.testing.assert_allclose(found, expected[0], **MAP)
    for ours, wanted in ((direct, expected[1]), (cotangent, expected[2])):
        largest = max(CANCELLED, abs(wanted).max())
        np.testing.assert_allclose(ours, wanted, atol=GRADIENT * largest)
    np.testing.assert_allclose(objective, expected[3], rtol=1e-5, atol=2e-5)


def test_dssim_driver_writes_what_is_asked_for_alone(launch: Launch) -> None:
    x, g, _ = _images((1, 1, 20, 20))
    weights = np.ones(1, np.float32)
    partial, sizes = np.full((1, 1), np.nan), [ctypes.c_int(v) for v in x.shape]
    constants = DssimConstants(1.0, 1e-4, 9e-4)
    given = (x, g, weights, ctypes.c_int(0))
    launch("dssim", (1, 1), *given, constants, None, None, partial, *sizes)
    wide = x.astype(float), g.astype(float)
    luminance = (2 * wide[0] * wide[1] + 1e-4) / (wide[0] ** 2 + wide[1] ** 2 + 1e-4)
    np.testing.assert_allclose(partial[0, 0], ((1 - luminance) / 2).sum(), rtol=1e-5)
