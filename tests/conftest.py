"""Fixtures shared by all rooms."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from ctypes import CDLL
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulation import SOURCES, build
from emulated_driver import EmulatedDriver

# As the command line sets it; the decoder reads it once, with the first video of the process.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed: no test depends on order or clock."""
    return np.random.default_rng(20240229)


@pytest.fixture
def make_flow():  # type: ignore[no-untyped-def]
    """Flows with random weights everywhere: a new flow is the identity behind its first layer."""
    import torch

    from unblemish.export.models.flow import ConditionalFlow

    def make(channels: int, grid: tuple[int, int], *, blocks: int = 3, seed: int = 0):  # type: ignore[no-untyped-def]
        rng = np.random.default_rng([seed, channels])
        flow = ConditionalFlow(channels, grid, blocks=blocks, hidden=11, seed=seed)
        with torch.no_grad():
            for weights in flow.parameters():
                weights.copy_(torch.from_numpy(0.4 * rng.standard_normal(weights.shape)))
        root = rng.standard_normal((channels, channels))
        factor = np.linalg.cholesky(root @ root.T + 0.5 * np.eye(channels))
        flow.whiten(rng.standard_normal(channels), np.linalg.inv(factor))
        return flow.requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CDLL]:
    """emulated('source.cpp') gives the CUDA drivers of a source compiled for the host, once."""
    folder = tmp_path_factory.mktemp("emulation")
    return functools.cache(lambda source: build(source, folder))


@pytest.fixture(scope="session")
def make_driver(emulated: Callable[[str], CDLL]) -> Callable[..., EmulatedDriver]:
    """make_driver(...) gives a CUDA driver that runs the kernels on the host."""

    def make(**settings: object) -> EmulatedDriver:
        libraries = [emulated(source) for source in SOURCES]
        return EmulatedDriver(libraries, **settings)  # type: ignore[arg-type]

    return make


_DOUBLE = Path(__file__).parent / "tensorrt_double"
_OURS = ("unblemish.runtime.backends.tensorrt", "unblemish.export.engines.tensorrt_builder",
         "unblemish.export.engines.bundle_engines",
         "unblemish.runtime.device.engines.tensorrt_pass", "tensorrt")  # fmt: skip


def _forget_tensorrt() -> None:
    for name in [n for n in sys.modules if n.startswith(_OURS) and "double" not in n]:
        del sys.modules[name]


@pytest.fixture(params=["10.3.0.30", "10.16.1.11", "11.4.0.5"])
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What happens in a double of TensorRT, which is what `import tensorrt` finds."""
    monkeypatch.syspath_prepend(_DOUBLE)
    double = importlib.import_module("double")
    module, world = double.make(request.param)
    running = importlib.import_module("running")
    world.memory_of, world.drive = running.Memory, running.DriverMemory
    _forget_tensorrt()
    sys.modules["tensorrt"] = module
    yield world
    _forget_tensorrt()
