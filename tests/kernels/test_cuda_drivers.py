"""The CUDA drivers compile for every architecture, and compute right when emulated on the host.

No GPU is used: see `emulate_cuda.cpp` for what emulation can and cannot show.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unblemish.kernels.reference import (
    adam,
    norms,
    project_ball,
    residual_l1,
    residual_l2,
    rgi_closed_form,
    rgi_gradient,
)

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "kernels" / "cuda"
GRID = (3, 2)  # blocks per item, items at once: fewer than the batch, so that both loops stride
# As for the CPU kernels: float32 arithmetic on numbers near 1, sums in float64.
ELEMENT = {"rtol": 2e-6, "atol": 2e-6}
SUM = {"rtol": 1e-6}

SHAPES = [(1, 1, 1, 1), (2, 1, 4, 16), (3, 3, 9, 11), (3, 5, 4, 25), (2, 1, 43, 23), (1, 3, 64, 64)]

Launch = Callable[..., None]


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
    return emulation("emulate_cuda.cpp")


def _batch(batch: int, channels: int, plane: int) -> tuple[Any, Any, Any]:
    return ctypes.c_int(batch), ctypes.c_int(channels), ctypes.c_size_t(plane)


def _aligned(values: Any, offset: int) -> Any:
    """Copy of `values` that starts `offset` floats after a multiple of 16 bytes."""
    room = np.empty(values.size + 8, np.float32)
    start = (-(room.ctypes.data // 4)) % 4 + offset
    copy = room[start : start + values.size].reshape(values.shape)
    copy[...] = values
    return copy


class Images:
    """Inputs and outputs of one shape; offset 1 makes 16-byte access impossible."""

    def __init__(self, shape: tuple[int, ...], offset: int, rng: np.random.Generator) -> None:
        x = rng.normal(size=shape)
        self.batch, self.channels = shape[:2]
        self.plane = shape[2] * shape[3]
        self.x = _aligned(x, offset)
        self.g = _aligned(x + rng.normal(size=shape) * 0.5, offset)
        self.mask = _aligned(rng.uniform(-0.5, 1.5, (shape[0], 1, *shape[2:])), offset)
        self.cotangent = _aligned(np.full(shape, 7.0), offset)
        self.mask_out = _aligned(np.full(self.mask.shape, 7.0), offset)
        self.lam = rng.uniform(0.05, 0.5, shape[0]).astype(np.float32)
        self.scale = rng.uniform(0.5, 2.0, shape[0]).astype(np.float32)
        self.partial = np.full((shape[0], GRID[0]), np.nan)
        self.objective = np.full(shape[0], np.nan)

    def finish(self, launch: Launch) -> None:
        launch(
            "finish_sum",
            (self.batch, 1),
            self.partial,
            self.scale,
            self.objective,
            ctypes.c_int(GRID[0]),
        )


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def images(request: pytest.FixtureRequest, rng: np.random.Generator, offset: int) -> Images:
    return Images(request.param, offset, rng)


@pytest.fixture(params=[0, 1], ids=["aligned", "unaligned"])
def offset(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def test_closed_form_driver_matches_reference(launch: Launch, images: Images) -> None:
    i = images
    sizes = _batch(i.batch, i.channels, i.plane)
    arrays = (i.x, i.g, i.lam, i.scale, i.mask_out, i.cotangent, i.partial)
    launch("rgi_closed_form", GRID, *arrays, *sizes)
    i.finish(launch)
    mask, cotangent, objective = rgi_closed_form(i.x, i.g, i.lam, i.scale, shared=True)
    np.testing.assert_allclose(i.mask_out, mask, **ELEMENT)
    np.testing.assert_allclose(i.cotangent, cotangent, **ELEMENT)
    np.testing.assert_allclose(i.objective, objective, **SUM)


def test_closed_form_driver_shows_nan(launch: Launch, rng: np.random.Generator) -> None:
    i = Images((3, 3, 9, 11), 0, rng)
    i.g[1, 2, 8, 10] = np.inf
    arrays = (i.x, i.g, i.lam, i.scale, i.mask_out, i.cotangent, i.partial)
    launch("rgi_closed_form", GRID, *arrays, *_batch(3, 3, 99))
    i.finish(launch)
    assert np.isnan(i.objective).tolist() == [False, True, False]


def test_gradient_driver_matches_reference(launch: Launch, images: Images) -> None:
    i = images
    sizes = _batch(i.batch, i.channels, i.plane)
    arrays = (i.x, i.g, i.mask, i.lam, i.scale, i.cotangent, i.mask_out, i.partial)
    launch("rgi_gradient", GRID, *arrays, *sizes)
    i.finish(launch)
    cotangent, mask_gradient, objective = rgi_gradient(i.x, i.g, i.mask, i.lam, i.scale)
    np.testing.assert_allclose(i.cotangent, cotangent, **ELEMENT)
    np.testing.assert_allclose(i.mask_out, mask_gradient, rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(i.objective, objective, **SUM)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("oracle", [residual_l2, residual_l1])
def test_residual_driver_matches_reference(
    launch: Launch, images: Images, oracle: Any, weighted: bool
) -> None:
    i = images
    weight = np.abs(i.mask, out=i.mask) if weighted else None
    arrays = (i.x, i.g, weight, i.scale, i.cotangent, i.partial)
    launch(oracle.__name__, GRID, *arrays, *_batch(i.batch, i.channels, i.plane))
    i.finish(launch)
    cotangent, objective = oracle(i.x, i.g, i.scale, weight)
    np.testing.assert_allclose(i.cotangent, cotangent, **ELEMENT)
    np.testing.assert_allclose(i.objective, objective, **SUM)


@pytest.mark.parametrize("count", [1, 19, 989, 4096])
def test_adam_driver_matches_reference(
    launch: Launch, rng: np.random.Generator, count: int, offset: int
) -> None:
    p, grad, m, v = (_aligned(rng.normal(size=count), offset) for _ in range(4))
    np.abs(v, out=v)
    settings = {"step": 3, "lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    expected = adam(p, grad, m, v, lower=-1.0, upper=1.0, **settings)
    step = AdamStep(0.999, 0.1, 0.001, 0.1 / (1 - 0.9**3), (1 - 0.999**3) ** -0.5, 1e-8, -1.0, 1.0)
    launch("adam", (2, 1), p, grad, m, v, step, ctypes.c_size_t(count))
    for found, wanted in zip((p, m, v), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("length", [1, 99, 989])
def test_project_ball_drivers_match_reference(
    launch: Launch, rng: np.random.Generator, length: int, centred: bool
) -> None:
    p = rng.normal(size=(3, length)).astype(np.float32)
    centre = rng.normal(size=p.shape).astype(np.float32) if centred else None
    distance = np.linalg.norm(p - (0 if centre is None else centre), axis=1)
    radius = (distance * np.array([0.0, 0.5, 2.0])).astype(np.float32)
    expected = project_ball(p, centre, radius)
    partial, squared = np.empty((3, GRID[0])), np.empty(3)
    sizes = (ctypes.c_int(3), ctypes.c_size_t(length))
    launch("squared_distance", GRID, p, centre, partial, *sizes)
    launch("finish_sum", (3, 1), partial, None, squared, ctypes.c_int(GRID[0]))
    launch("project_ball", GRID, p, centre, radius, squared, *sizes)
    np.testing.assert_allclose(p, expected, **ELEMENT)


def test_norms_drivers_match_reference(launch: Launch, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 989)).astype(np.float32)
    x[1, 500] = np.nan
    partial = np.empty((2, 3, GRID[0]))
    found = np.empty((2, 3))
    sizes = (ctypes.c_int(3), ctypes.c_size_t(989))
    launch("norms", GRID, x, partial[0], partial[1], *sizes)
    blocks = ctypes.c_int(GRID[0])
    launch("finish_norms", (3, 1), partial[0], partial[1], found[0], found[1], blocks)
    squared, largest = norms(x)
    np.testing.assert_allclose(found[0], squared, rtol=1e-13)
    np.testing.assert_array_equal(found[1], largest)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_all_finite_driver_sees_one_bad_element(launch: Launch, bad: float) -> None:
    x = np.zeros(989, np.float32)
    flag = np.ones(1, np.int32)
    launch("all_finite", (2, 1), x, flag, ctypes.c_size_t(x.size))
    assert flag.item() == 1
    x[988] = bad
    launch("all_finite", (2, 1), x, flag, ctypes.c_size_t(x.size))
    assert flag.item() == 0


def test_every_driver_compiles_for_every_architecture(tmp_path: Path) -> None:
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("nvcc is not installed: the CUDA kernels are not compiled here")
    script = CUDA / "compile_check.sh"
    environment = {**os.environ, "NVCC": nvcc}
    done = subprocess.run(
        ["sh", str(script), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for chip in (87, 89, 90):  # what every toolkit since CUDA 12 knows
        assert f" {chip}" in done.stdout.split("PTX")[0]
    built = {path.stem for path in tmp_path.glob("*.fatbin")}
    assert built == {path.stem for path in CUDA.glob("*.cu")}


def test_compile_check_says_so_when_nvcc_is_missing() -> None:
    script = CUDA / "compile_check.sh"
    environment = {**os.environ, "NVCC": "/nonexistent/nvcc"}
    done = subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "CUDA kernels NOT COMPILED: nvcc was not found (put it on PATH or set NVCC)."
    ]
