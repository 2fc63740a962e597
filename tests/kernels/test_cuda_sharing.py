"""The CUDA drivers of gradient sharing on the host: by tiles and from the caches, the same bits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from ctypes import CDLL
from typing import Any

import numpy as np
import pytest
from emulated_driver import EmulatedDriver

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.reference.sharing import (
    share_gradient,
    share_gradient_direct,
    sharing_weights,
)

GRID = (3, 2)  # blocks per item, items at once: fewer than the batch, so that both loops stride
SIGMA_COLOUR = 3.0

# One pixel; lines shorter and longer than a tile; prime sides; any number of channels.
CASES = [
    ((1, 1, 1, 1), 0), ((1, 1, 1, 1), 3), ((2, 3, 1, 67), 2), ((2, 1, 19, 1), 7), ((3, 3, 4, 5), 7),
    ((1, 3, 17, 41), 5), ((2, 1, 13, 37), 15), ((3, 4, 11, 31), 4), ((1, 2, 8, 32), 1),
]  # fmt: skip

Launch = Callable[..., None]


@pytest.fixture(scope="module")
def launch(emulation: Callable[[str], Launch]) -> Launch:
    """launch('kernel', grid, *arguments) on the host."""
    return emulation("emulate_image_terms.cpp")


@pytest.fixture(params=[0, 1], ids=["forwards", "backwards"])
def lanes(request: pytest.FixtureRequest, emulated: Callable[[str], CDLL]) -> Iterator[None]:
    """Which lane of a block comes first."""
    order = ctypes.c_int.in_dll(emulated("emulate_image_terms.cpp"), "emulation_order")
    order.value = request.param
    yield
    order.value = 0


def _images(shape: tuple[int, ...]) -> tuple[Any, Any]:
    rng = np.random.default_rng([*shape])
    return rng.normal(size=shape).astype(np.float32), rng.random(shape, dtype=np.float32) * 4


def _run(
    launch: Launch, suffix: str, shape: tuple[int, ...], radius: int, sigma_space: float
) -> tuple[Any, Any, Any]:
    """Table, gradient shared by it, gradient shared directly; on outputs that hold NaN."""
    g, x = _images(shape)
    batch, channels, *size = shape
    table = np.full((batch, (2 * radius + 1) ** 2, *size), np.nan, np.float16)
    shared, direct = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    sigmas = ctypes.c_float(1 / sigma_space), ctypes.c_float(1 / SIGMA_COLOUR)
    sizes = [ctypes.c_int(n) for n in (batch, channels, *size, radius, radius)]
    launch(f"sharing_weights{suffix}", GRID, x, *sigmas, table, *sizes)
    launch(f"share_gradient{suffix}", GRID, g, table, shared, *sizes)
    launch(f"share_gradient_direct{suffix}", GRID, g, x, *sigmas, direct, *sizes)
    return table, shared, direct


@pytest.mark.parametrize(("shape", "radius"), CASES)
@pytest.mark.parametrize("sigma_space", [1.1, 20.0])
def test_tiles_give_the_bits_of_the_caches_and_those_the_reference(
    launch: Launch, lanes: None, shape: tuple[int, ...], radius: int, sigma_space: float
) -> None:
    tiled = _run(launch, "", shape, radius, sigma_space)
    for ours, wide in zip(tiled, _run(launch, "_wide", shape, radius, sigma_space), strict=True):
        np.testing.assert_array_equal(ours.view(np.uint8), wide.view(np.uint8))
    g, x = _images(shape)
    table, shared, direct = tiled
    settings: Any = {"radius": radius, "sigma_space": sigma_space, "sigma_colour": SIGMA_COLOUR}
    wanted = sharing_weights(x, **settings)
    np.testing.assert_allclose(table.astype(float), wanted, rtol=0, atol=2.5e-4)
    expected = share_gradient(g, table, radius=radius)
    np.testing.assert_allclose(shared, expected, rtol=0, atol=4e-6)
    expected = share_gradient_direct(g, x, **settings)
    np.testing.assert_allclose(direct, expected, rtol=0, atol=4e-6)


def test_halves_on_the_device_are_those_of_numpy(launch: Launch) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1, 1, 256, 256)
    shared = np.empty((1, 1, 256, 256), np.float32)
    sizes = [ctypes.c_int(value) for value in (1, 1, 256, 256, 0, 0)]
    launch("share_gradient", (2, 1), np.ones_like(shared), bits, shared, *sizes)
    np.testing.assert_array_equal(shared, bits.astype(np.float32))


@pytest.mark.parametrize(
    ("shape", "radius", "sigma_space", "wide"),
    [
        ((1, 3, 9, 20), 7, 400.0, ""),
        ((1, 3, 9, 20), 8, 400.0, "_wide"),
        ((1, 1, 9, 40), 18, 400.0, ""),
        ((1, 1, 9, 40), 19, 400.0, "_wide"),
        ((1, 3, 9, 20), 15, 1.1, ""),  # further than 4 px no weight counts
        ((2, 3, 5, 6), 40, 1e308, ""),  # nor is there anything
    ],
)
def test_tiles_are_used_where_they_fit(
    make_driver: Callable[..., EmulatedDriver],
    shape: tuple[int, ...],
    radius: int,
    sigma_space: float,
    wide: str,
) -> None:
    driver = make_driver()
    g, x = _images(shape)
    shared = np.full(shape, np.nan, np.float32)
    settings: Any = {"radius": radius, "sigma_space": sigma_space, "sigma_colour": SIGMA_COLOUR}
    CudaKernels(driver=driver).share_gradient_direct(g, x, **settings, shared=shared)
    assert driver.launched == [f"share_gradient_direct{wide}"]
    expected = share_gradient_direct(g, x, **settings)
    np.testing.assert_allclose(shared, expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize(("radius", "wide"), [(13, ""), (14, "_wide")])
def test_the_table_has_all_its_neighbours(
    make_driver: Callable[..., EmulatedDriver], radius: int, wide: str
) -> None:
    """Weights of a table count whatever their distance."""
    driver, shape = make_driver(), (1, 3, 3, 20)
    g, _ = _images(shape)
    side = 2 * radius + 1
    table = np.random.default_rng(0).random((1, side**2, 3, 20)).astype(np.float16)
    shared = np.full(shape, np.nan, np.float32)
    CudaKernels(driver=driver).share_gradient(g, table, radius=radius, shared=shared)
    assert driver.launched == [f"share_gradient{wide}"]
    expected = share_gradient(g, table, radius=radius)
    np.testing.assert_allclose(shared, expected, rtol=0, atol=1e-4)
