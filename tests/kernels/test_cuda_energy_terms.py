"""The CUDA drivers of energy projection, emulated on the host, against the float64 reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.kernels.reference import ReferenceKernels
from unblemish.kernels.reference.dssim import dssim
from unblemish.kernels.reference.gaussian_nll import gaussian_nll

GRID = (3, 2)  # blocks per item, items at once: fewer than the batch, so that both loops stride
# As for the CPU kernels: windowed variances in float32 over C2 = 9e-4, slopes of 100 that cancel.
MAP = {"rtol": 0, "atol": 2e-5}
GRADIENT = 5e-6
CANCELLED = 100.0

# Half a dozen float32 roundings of numbers near 1, and of steps that reach 10 with Adam.
ELEMENT = {"rtol": 4e-6, "atol": 4e-6}
SUM = {"rtol": 2e-5, "atol": 1e-9}

SHAPES = [(1, 1, 1, 1), (3, 3, 9, 11), (2, 1, 1, 19), (2, 1, 19, 1), (3, 1, 37, 52)]

Launch = Callable[..., None]


class DssimConstants(ctypes.Structure):
    """`unblemish::DssimConstants`."""

    _fields_ = [(name, ctypes.c_float) for name in ("range", "c1", "c2")]


class AdamStep(ctypes.Structure):
    """`unblemish::AdamStep`."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            "beta2",
            "one_minus_beta1",
            "one_minus_beta2",
            "step_size",
            "inverse_root_bias2",
            "eps",
            "lower",
            "upper",
        )
    ]


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
    launch("finish_sum", (batch, 1), partial, scale, objective, ctypes.c_int(GRID[0]))
    launch("dssim_gradient", GRID, x, g, *given, slopes, scale, direct, cotangent, *sizes)
    expected = dssim(x, g, scale, data_range=1.0, window=window, sigma=sigma)
    np.testing.assert_allclose(found, expected[0], **MAP)
    for ours, wanted in ((direct, expected[1]), (cotangent, expected[2])):
        largest = max(CANCELLED, abs(wanted).max())
        np.testing.assert_allclose(ours, wanted, atol=GRADIENT * largest)
    np.testing.assert_allclose(objective, expected[3], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("window", [1, 11, 31])
def test_dssim_by_tiles_gives_the_bits_of_the_caches(
    launch: Launch, shape: tuple[int, int, int, int], window: int
) -> None:
    x, g, scale = _images(shape)
    batch, channels, *size = shape
    weights = np.random.default_rng(window).random(window, dtype=np.float32) / window
    given, sizes = (weights, ctypes.c_int(window // 2)), [ctypes.c_int(value) for value in shape]
    constants, found = DssimConstants(1.0, 1e-4, 9e-4), []
    for suffix in ("", "_wide"):
        slopes = np.full((batch, channels, 4, *size), np.nan, np.float32)
        shown, partial = np.full((batch, 1, *size), np.nan, np.float32), np.empty((batch, GRID[0]))
        out = np.full((2, *shape), np.nan, np.float32)
        launch(f"dssim{suffix}", GRID, x, g, *given, constants, slopes, shown, partial, *sizes)
        launch(f"dssim_gradient{suffix}", GRID, x, g, *given, slopes, scale, *out, *sizes)
        found.append((slopes, shown, partial, out))
    for tiled, wide in zip(*found, strict=True):
        np.testing.assert_array_equal(tiled, wide)


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


def _aligned(values: Any, offset: int) -> Any:
    """Copy that starts `offset` floats after a multiple of 16 bytes: 1 forbids wide access."""
    room = np.empty(values.size + 8, np.float32)
    start = (-(room.ctypes.data // 4)) % 4 + offset
    copy = room[start : start + values.size].reshape(values.shape)
    copy[...] = values
    return copy


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ((), 0),
        (("direct", "mask"), 2),
        (("direct", "restored", "first", "second"), 0),
        (("mask", "restored", "first", "second"), 3),
    ],
)
def test_energy_step_driver_matches_reference(
    launch: Launch,
    shape: tuple[int, int, int, int],
    given: tuple[str, ...],
    flags: int,
    offset: int,
) -> None:
    rng = np.random.default_rng(5)
    batch, channels, height, width = shape
    names = ("start", "pulled", "x", "direct", "restored", "first", "second")
    arrays = {name: _aligned(rng.normal(size=shape), offset) for name in names}
    arrays["second"][...] = 0.2 + arrays["second"] ** 2
    arrays["x"][..., ::3] = arrays["start"][..., ::3]
    arrays["mask"] = _aligned(rng.random((batch, 1, height, width)), offset)
    lam, rate = (np.linspace(0.1, top, batch, dtype=np.float32) for top in (1.5, 0.5))
    optional = ("direct", "mask", "restored", "first", "second")
    chosen = {name: arrays[name] if name in given else None for name in optional}
    expected = {name: None if v is None else v.copy() for name, v in chosen.items()}
    wanted = arrays["x"].copy()
    sums = {name: np.empty(batch) for name in ("l1", "squared_change", "largest_change")}
    ReferenceKernels().energy_step(
        wanted, arrays["start"], arrays["pulled"], lam, rate, **expected, **sums, step=3,
        direct_factor=-1.0, weigh_step=bool(flags & 1), proximal=bool(flags & 2),
        lower=-2.0, upper=2.0,
    )  # fmt: skip
    adam = AdamStep(
        0.999, 0.1, 1e-3, 1 / (1 - 0.9**3), (1 - 0.999**3) ** -0.5, 1e-8, -2.0, 2.0,
    )  # fmt: skip
    parts = np.full((3, batch, GRID[0]), np.nan)
    numbers = (adam, ctypes.c_float(-1.0), ctypes.c_int(flags), ctypes.c_int(1))
    sizes = (ctypes.c_int(batch), ctypes.c_int(channels), ctypes.c_size_t(height * width))
    pointers = (arrays["x"], arrays["start"], arrays["pulled"], *chosen.values(), lam, rate)
    launch("energy_step", GRID, *pointers, *numbers, *parts, *sizes)
    found = np.full((3, batch), np.nan)
    blocks = ctypes.c_int(GRID[0])
    launch("finish_sum", (batch, 1), parts[0], lam, found[0], blocks)
    launch("finish_norms", (batch, 1), parts[1], parts[2], found[1], found[2], blocks)
    np.testing.assert_allclose(arrays["x"], wanted, **ELEMENT)
    for name in ("first", "second"):
        if name in given:
            np.testing.assert_allclose(chosen[name], expected[name], **ELEMENT)
    for ours, exact in zip(found, sums.values(), strict=True):
        np.testing.assert_allclose(ours, exact, **SUM)


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_gaussian_nll_driver_matches_reference(
    launch: Launch, shape: tuple[int, int, int, int], offset: int
) -> None:
    x, g, scale = _images(shape)
    x, g = _aligned(x, offset), _aligned(g, offset)
    batch, channels, height, width = shape
    rng = np.random.default_rng(7)
    log_scale = _aligned(rng.uniform(-3, 1, size=(batch, 1, height, width)), offset)
    found = _aligned(np.full(shape, np.nan), offset)
    by_scale = _aligned(np.full(log_scale.shape, np.nan), offset)
    partial, objective = np.full((batch, GRID[0]), np.nan), np.full(batch, np.nan)
    sizes = (ctypes.c_int(batch), ctypes.c_int(channels), ctypes.c_size_t(height * width))
    launch("gaussian_nll", GRID, x, g, log_scale, scale, found, by_scale, partial, *sizes)
    launch("finish_sum", (batch, 1), partial, scale, objective, ctypes.c_int(GRID[0]))
    expected = gaussian_nll(x, g, log_scale, scale)
    np.testing.assert_allclose(found, expected[0], rtol=4e-6, atol=4e-6)
    largest = max(1.0, abs(expected[1]).max())
    np.testing.assert_allclose(by_scale, expected[1], rtol=0, atol=4e-6 * largest)
    np.testing.assert_allclose(objective, expected[2], rtol=4e-6)
