"""The implementations under test, each held to the float64 reference by the same suite."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL
from dataclasses import dataclass

import numpy as np
import pytest
from cuda_emulation import launcher
from numpy.typing import NDArray

from unblemish.kernels.api import Kernels
from unblemish.kernels.fallback import NumpyKernels
from unblemish.kernels.reference import ReferenceKernels

Float = NDArray[np.float32]


def _compiled(threads: int, instruction_set: str | None = None) -> Kernels:
    pytest.importorskip(
        "unblemish.kernels._cpu", reason="this install was made without a C++ compiler"
    )
    from unblemish.kernels.cpu import CpuKernels, instruction_sets

    if instruction_set is not None and instruction_set not in instruction_sets():
        pytest.skip(f"this processor or build has no {instruction_set}")
    return CpuKernels(threads, instruction_set=instruction_set)


_MAKERS: dict[str, Callable[[], Kernels]] = {
    "cpu": lambda: _compiled(1),
    "cpu-2-threads": lambda: _compiled(2),
    "cpu-baseline": lambda: _compiled(1, "baseline"),
    "cpu-avx2": lambda: _compiled(1, "avx2"),
    "numpy": NumpyKernels,
}


_ON_DEVICES = ["cuda-emulated", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=[*_MAKERS, *_ON_DEVICES])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Each implementation in turn; the CUDA kernels also where there is no GPU, on the host."""
    if request.param == "cuda-emulated":
        from unblemish.kernels.cuda import CudaKernels

        return CudaKernels(driver=request.getfixturevalue("make_driver")())
    if request.param == "cuda":
        found: Kernels = request.getfixturevalue("gpu_kernels")
        return found
    return _MAKERS[request.param]()


@pytest.fixture(scope="session")
def gpu_kernels() -> Kernels:
    """The CUDA kernels on the GPU, once for all tests."""
    pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
    from unblemish.kernels.cuda import CudaKernels

    return CudaKernels()


@pytest.fixture
def reference() -> Kernels:
    return ReferenceKernels()


@dataclass(frozen=True)
class Case:
    """Inputs of one image operation."""

    x: Float
    g: Float
    lam: Float
    scale: Float
    mask: Float
    weight: Float


# Flattened extents 1, 19, 99 and 989 are no multiple of any vector width; 8193 straddles the block
# of the compiled kernels, and 2 x 3 x 301 x 303 is large enough to be shared by threads.
SHAPES = [
    (1, 1, 1, 1),
    (1, 1, 1, 19),
    (3, 1, 9, 11),
    (1, 3, 1, 1),
    (2, 3, 1, 19),
    (5, 3, 9, 11),
    (2, 5, 23, 43),
    (1, 3, 3, 2731),
    (2, 3, 301, 303),
]


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int, int]:
    found: tuple[int, int, int, int] = request.param
    return found


@pytest.fixture(params=[True, False], ids=["shared", "element"])
def mask_shape(
    request: pytest.FixtureRequest, shape: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """Shape of the mask (or weight): shared by the channels, or per element."""
    return (shape[0], 1, *shape[2:]) if request.param else shape


@pytest.fixture
def case(
    shape: tuple[int, int, int, int],
    mask_shape: tuple[int, int, int, int],
    rng: np.random.Generator,
) -> Case:
    x = rng.normal(size=shape).astype(np.float32)
    r = rng.normal(size=shape) * rng.choice([0.02, 0.2, 2.0], size=shape)
    return Case(
        x=x,
        g=(x + r).astype(np.float32),
        lam=rng.uniform(0.01, 0.5, size=shape[0]).astype(np.float32),
        scale=rng.uniform(0.1, 2.0, size=shape[0]).astype(np.float32),
        mask=rng.uniform(-0.5, 1.5, size=mask_shape).astype(np.float32),
        weight=rng.uniform(0.0, 2.0, size=mask_shape).astype(np.float32),
    )


@pytest.fixture(scope="session")
def emulation(emulated: Callable[[str], CDLL]) -> Callable[[str], Callable[..., None]]:
    """emulation('source.cpp') gives launch('kernel', grid, *arguments): CUDA drivers on the host.

    NumPy arrays become pointers, None a null pointer; numbers are ctypes. See
    `tools/cuda_emulation.py`.
    """
    return lambda source: launcher(emulated(source))
