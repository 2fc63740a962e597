"""Kernels between the passes of a detector, run on the host, against NumPy in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.cuda.steps import adan_steps
from unblemish.runtime.device.detectors.projection import DeviceView, ViewTables, taps_of
from unblemish.runtime.device.memory import own_memory
from unblemish.runtime.methods.decomposition import View

Launch = Callable[..., None]
GRIDS = [(1, 1), (3, 2)]
# float32 sums of a few products.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def launch(emulation: Callable[[str], Launch]) -> Launch:
    return emulation("emulate_detectors.cpp")


@pytest.fixture
def device(make_driver: Any) -> Any:
    return CudaKernels(driver=make_driver()).device


def size(value: int) -> Any:
    return ctypes.c_size_t(value)


def banded(rng: np.random.Generator, items: int, rows: int, columns: int) -> np.ndarray:
    """Matrices of whose rows a stretch is not 0, or nothing."""
    out = np.zeros((items, rows, columns), np.float32)
    for item in range(items):
        for row in range(rows):
            first = int(rng.integers(0, columns))
            count = int(rng.integers(0, min(5, columns - first) + 1))
            out[item, row, first : first + count] = rng.normal(size=count)
    return out


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 3), (3, 5, 19), (1, 4, 99)])
def test_taps_are_the_matrix(rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    dense = banded(rng, *shape)
    found = taps_of(dense)
    again = np.zeros_like(dense)
    count = found.weights.shape[2]
    assert count <= 5
    for item, row in np.ndindex(*shape[:2]):
        start = found.start[item, row]
        assert 0 <= start <= shape[2] - count
        again[item, row, start : start + count] = found.weights[item, row]
    np.testing.assert_array_equal(again, dense)


@pytest.mark.parametrize(
    ("items", "versions", "channels", "window", "crop"),
    [(1, 1, 1, (1, 1), (1, 1)), (2, 2, 3, (9, 19), (5, 7)), (1, 5, 1, (6, 4), (11, 13))],
)
def test_views_project_and_pull_back_as_their_matrices(
    device: Any,
    rng: np.random.Generator,
    items: int,
    versions: int,
    channels: int,
    window: tuple[int, int],
    crop: tuple[int, int],
) -> None:
    base, n = (rng.normal(size=(k, channels, *window)).astype("f4") for k in (items, versions))
    images = rng.normal(size=(items, channels, *crop)).astype(np.float32)
    down = banded(rng, items, crop[0], window[0])
    across = banded(rng, items, crop[1], window[1]).transpose(0, 2, 1).copy()
    view = DeviceView(
        device, ViewTables.of(View(base, images, down, across, 0.7)), own_memory(device)
    )
    held, out = device.to_device(n), device.zeros((versions + 2, channels, *crop))
    view.project(held, out)
    change = n.astype(np.float64) - base
    expected = 0.7 * (down[:, None].astype("f8") @ change @ across[:, None]) + images
    np.testing.assert_allclose(device.to_host(out)[:versions], expected, **CLOSE)
    assert not device.to_host(out)[versions:].any()
    gradient = rng.normal(size=(versions, channels, *crop)).astype(np.float32)
    held, back = device.to_device(gradient), device.empty(n.shape)
    view.pull_back(held, back)
    turned = down.transpose(0, 2, 1)[:, None], across.transpose(0, 2, 1)[:, None]
    expected = 0.7 * (turned[0].astype(np.float64) @ gradient @ turned[1])
    np.testing.assert_allclose(device.to_host(back), expected, **CLOSE)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("channels", [1, 7, 12])
def test_surroundings_are_learned_and_added(
    launch: Launch, rng: np.random.Generator, grid: tuple[int, int], channels: int
) -> None:
    whole = rng.normal(size=(9, 11, channels)).astype(np.float32)
    features = rng.normal(size=(3, 4, 5, channels)).astype(np.float32)
    correction = np.full((4, 5, channels), np.nan, np.float32)
    corner = [ctypes.c_int(value) for value in (2, 3, 11, 4, 5, channels)]
    launch("learn_surroundings", grid, whole, features, correction, *corner)
    near = whole[2:6, 3:8]
    np.testing.assert_array_equal(correction, near - features[0])
    expected = features + correction
    launch("add_row", grid, features, correction, ctypes.c_int(3), size(correction.size))
    np.testing.assert_array_equal(features, expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_rows_are_taken_and_spread(
    launch: Launch, rng: np.random.Generator, grid: tuple[int, int]
) -> None:
    x = rng.normal(size=(23, 9)).astype(np.float32)
    rows = rng.integers(0, 23, 301).astype(np.int32)
    out = np.full((301, 4), np.nan, np.float32)
    part = [ctypes.c_int(value) for value in (9, 3, 4)]
    launch("take_rows", (grid[0], 1), x, rows, out, ctypes.c_int(301), *part)
    np.testing.assert_array_equal(out, x[rows, 3:7])
    back = np.zeros((301, 9), np.float32)
    of = rng.integers(0, 301, 301).astype(np.int32)
    launch("spread_rows", (grid[0], 1), out, of, back, ctypes.c_int(301), *part)
    np.testing.assert_array_equal(back[:, 3:7], out[of])
    assert not back[:, [0, 1, 2, 7, 8]].any()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_surprise_and_slope_hold_at_any_likelihood(launch: Launch) -> None:
    likelihood = np.array([0, 1, -1, 30, -30, 1e4, -1e4, np.inf, -np.inf, np.nan], np.float32)
    typical = np.full(10, 0.5, np.float32)
    surprise, slope = np.empty_like(likelihood), np.empty_like(likelihood)
    launch("surprise", (1, 1), likelihood, typical, surprise, slope, size(10))
    below = 0.5 - likelihood.astype(np.float64)
    np.testing.assert_allclose(surprise, np.logaddexp(0, below), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(slope, -np.exp(-np.logaddexp(0, -below)), rtol=1e-6, atol=1e-12)
    launch("surprise", (1, 1), likelihood, typical, surprise, None, size(10))
    scores = np.full(4, 7, np.float32)
    of = np.array([3, 0, 3, 2], np.int32)
    launch("add_taken", (1, 1), surprise, of, scores, size(4), ctypes.c_int(1))
    np.testing.assert_array_equal(scores, surprise[of])
    launch("add_taken", (1, 1), surprise, of, scores, size(4), ctypes.c_int(0))
    np.testing.assert_array_equal(scores, surprise[of] * 2)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("length", [1, 19, 989])
def test_rows_are_summed_in_float64(
    launch: Launch, rng: np.random.Generator, grid: tuple[int, int], length: int
) -> None:
    x = (1e6 + rng.normal(size=(3, length))).astype(np.float32)
    partial = np.full((3, grid[0]), np.nan)
    launch("sum_rows", grid, x, partial, ctypes.c_int(3), size(length))
    np.testing.assert_allclose(partial.sum(1), x.sum(1, dtype=np.float64), rtol=1e-14)


def test_recent_change_is_that_of_the_last_steps(launch: Launch, rng: np.random.Generator) -> None:
    trace = rng.normal(size=(5, 12))
    steps = np.array([0, 3, 4, 11, 7], np.int32)
    value, change = rng.normal(size=5), np.empty(5)
    sizes = [ctypes.c_int(number) for number in (12, 4, 5)]
    launch("recent_change", (1, 1), value, trace, steps, change, *sizes)
    assert np.isinf(change[:2]).all()
    for item in (2, 3, 4):
        values = [*trace[item, steps[item] - 4 : steps[item]], value[item]]
        assert change[item] == np.abs(np.diff(values)).max()


def test_adan_scheduled_takes_the_steps_of_adan(make_driver: Any, rng: np.random.Generator) -> None:
    kernels = CudaKernels(driver=make_driver())
    device, shape = kernels.device, (2, 3, 5, 7)
    x = rng.normal(size=shape).astype(np.float32)
    rate = np.array([0.01, 0.3], np.float32)
    free = (rng.random((2, 1, 5, 7)) > 0.3).astype(np.uint8)
    box = {"clip": 0.4, "lower": -1.0, "upper": 1.0, "floor": 0.05}
    names = ("n", "first", "slope", "second", "previous")
    host = {name: np.zeros(shape, np.float32) for name in names}
    held = {name: device.to_device(array) for name, array in host.items()}
    fixed = {"x": x, "free": free, "rate": rate, "g": x}
    on_device = {name: device.to_device(array) for name, array in fixed.items()}
    steps, at = device.to_device(adan_steps(4, **box)), device.zeros((1,), np.int32)
    for step in range(1, 5):
        g = rng.normal(size=shape).astype(np.float32)
        kernels.adan(**{**host, **fixed, "g": g}, step=step, **box)
        device.upload(at, np.array([step - 1], np.int32))
        device.upload(on_device["g"], g)
        kernels.adan_scheduled(**held, **on_device, steps=steps, at=at)
        for name, array in held.items():
            np.testing.assert_array_equal(device.to_host(array), host[name])
