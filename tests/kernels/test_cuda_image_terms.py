"""The CUDA drivers of F2PAD's terms, emulated on the host, against the float64 reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.kernels.reference.adan import adan
from unblemish.kernels.reference.log_penalty import log_penalty
from unblemish.kernels.reference.mixture_prior import mixture_prior
from unblemish.kernels.reference.total_variation import total_variation

GRID = (3, 2)  # blocks per item, items at once: fewer than the batch, so that both loops stride
# As for the CPU kernels: a dozen float32 roundings, slopes that reach 100; sums in float64.
ELEMENT = {"rtol": 2e-6, "atol": 5e-5}
SUM = {"rtol": 2e-6, "atol": 1e-6}

SHAPES = [(1, 1, 1, 1), (3, 3, 9, 11), (3, 4, 4, 8), (2, 1, 1, 19), (2, 1, 19, 1), (3, 1, 37, 52)]

Launch = Callable[..., None]


class AdanStep(ctypes.Structure):
    """`unblemish::AdanStep`."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            "one_minus_beta1",
            "beta2",
            "one_minus_beta2",
            "one_minus_beta3",
            "inverse_bias1",
            "slope_factor",
            "inverse_root_bias3",
            "eps",
            "clip",
            "lower",
            "upper",
            "floor",
            "has_previous",
        )
    ]


@pytest.fixture(scope="module")
def launch(emulation: Callable[[str], Launch]) -> Launch:
    """launch('kernel', grid, *arguments) on the host."""
    return emulation("emulate_image_terms.cpp")


class Images:
    """Inputs of one shape; offset 1 makes 16-byte access impossible."""

    def __init__(self, shape: tuple[int, int, int, int], offset: int) -> None:
        rng = np.random.default_rng(3)
        batch, channels, height, width = shape
        self.shape = shape
        self.offset = offset
        self.n = self.aligned(rng.random(shape) * 4)
        self.x = self.aligned(rng.random(shape) * 4)
        self.g = self.aligned(rng.normal(size=shape))
        self.gradient = self.aligned(np.ones(shape))
        self.free = (rng.random((batch, 1, height, width)) < 0.7).astype(np.uint8)
        self.weight = np.linspace(0.5, 2, batch, dtype=np.float32)
        self.partial = np.full((batch, GRID[0]), np.nan)
        self.value = np.full(batch, 3.0)
        self.batch, self.channels = ctypes.c_int(batch), ctypes.c_int(channels)
        self.plane = ctypes.c_size_t(height * width)
        self.size = (ctypes.c_int(height), ctypes.c_int(width))

    def aligned(self, values: Any) -> Any:
        """Copy that starts `offset` floats after a multiple of 16 bytes."""
        room = np.empty(values.size + 8, np.float32)
        start = (-(room.ctypes.data // 4)) % 4 + self.offset
        copy = room[start : start + values.size].reshape(values.shape)
        copy[...] = values
        return copy

    def finish(self, launch: Launch, expected: tuple[Any, Any]) -> None:
        """Add the partial sums to the value, and compare."""
        blocks = ctypes.c_int(GRID[0])
        grid = (self.shape[0], 1)
        launch("finish_added_sum", grid, self.partial, self.weight, self.value, blocks)
        np.testing.assert_allclose(self.gradient - 1, expected[0], **ELEMENT)
        np.testing.assert_allclose(self.value - 3, expected[1], **SUM)


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int, int]:
    found: tuple[int, int, int, int] = request.param
    return found


@pytest.fixture(params=[0, 1], ids=["aligned", "unaligned"])
def images(request: pytest.FixtureRequest, shape: tuple[int, int, int, int]) -> Images:
    return Images(shape, request.param)


@pytest.fixture
def plain(shape: tuple[int, int, int, int]) -> Images:
    """For drivers with no wide access."""
    return Images(shape, 0)


def test_total_variation_driver_matches_reference(launch: Launch, plain: Images) -> None:
    i = plain
    arrays = (i.n, i.weight, i.gradient, i.partial)
    launch("total_variation", GRID, *arrays, i.batch, i.channels, *i.size)
    i.finish(launch, total_variation(i.n, i.weight))


def test_log_penalty_driver_matches_reference(launch: Launch, images: Images) -> None:
    i = images
    i.x[..., ::3] = i.n[..., ::3]
    epsilon = ctypes.c_float(1e-4)
    arrays = (i.x, i.n, i.weight, i.free, epsilon, i.gradient, i.partial)
    launch("log_penalty", GRID, *arrays, i.batch, i.channels, i.plane)
    i.finish(launch, log_penalty(i.x, i.n, i.weight, i.free, epsilon=1e-4))


def test_mixture_prior_driver_matches_reference(launch: Launch, plain: Images) -> None:
    i, rng = plain, np.random.default_rng(5)
    channels = i.shape[1]
    means = rng.random((3, channels), dtype=np.float32) * 4
    root = rng.normal(size=(3, channels, channels)) * 0.3
    eye = np.eye(channels)
    precisions = (root @ root.transpose(0, 2, 1) + eye).astype(np.float32)
    arrays = (means, precisions, ctypes.c_int(3), i.weight, i.free, i.gradient, i.partial)
    launch("mixture_prior", GRID, i.n, *arrays, i.batch, i.channels, i.plane)
    i.finish(launch, mixture_prior(i.n, means, precisions, i.weight, i.free))


@pytest.mark.parametrize("step", [1, 3])
def test_adan_driver_matches_reference(launch: Launch, images: Images, step: int) -> None:
    i, rng = images, np.random.default_rng(7)
    moments = [i.aligned(rng.normal(size=i.shape)) for _ in range(4)]
    np.abs(moments[2], out=moments[2])
    settings = {"clip": 1.5, "lower": 0.5, "upper": 3.5, "floor": 0.1, "eps": 1e-8}
    wanted, expected = adan(
        i.n, i.x, i.g, moments, i.free,
        step=step, rate=i.weight * 0.01, betas=(0.98, 0.92, 0.99), **settings,
    )  # fmt: skip
    made = AdanStep(
        0.02, 0.92, 0.08, 0.01,
        1 / (1 - 0.98**step), 0.92 / (1 - 0.92**step), (1 - 0.99**step) ** -0.5,
        1e-8, 1.5, 0.5, 3.5, 0.1, float(step > 1),
    )  # fmt: skip
    planes = ctypes.c_int(i.shape[0] * i.shape[1])
    rate = i.weight * np.float32(0.01)
    arrays = (i.n, i.x, i.g, *moments, i.free, rate, made)
    launch("adan", GRID, *arrays, planes, i.channels, i.plane)
    np.testing.assert_allclose(i.n, wanted, rtol=1e-5, atol=1e-5)
    for found, moment in zip(moments, expected, strict=True):
        np.testing.assert_allclose(found, moment, rtol=4e-6, atol=4e-6)
