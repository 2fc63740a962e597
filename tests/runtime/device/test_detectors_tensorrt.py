"""Detectors by TensorRT's engines: its double on the driver double, every pass on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorrt_results import compute
from tiny_detectors import HEIGHT, WIDTH, calibrated, normal_frames, spoilt, tiny_detector

from unblemish.bundle import Bundle
from unblemish.export.engines.options import EngineOptions
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.inspector import Inspector

pytestmark = pytest.mark.parametrize("tensorrt", ["11.4.0.5"], indirect=True)
SIZES = ((HEIGHT, WIDTH), (HEIGHT, 80), (32, 32))
PAPER = {"max_steps": 6, "radius": 1, "beta0": 30.0, "step_size": 0.4, "dilation": 2}

Open = Callable[..., tuple[Inspector, Inspector]]


def refused() -> Any:
    raise AssertionError("something has no engine, and goes to another backend")


@pytest.fixture
def opened(tensorrt: Any, kernels: CudaKernels, tmp_path: Path) -> Open:
    """opened(method, schedule, **settings): inspectors of the CPU and of the engines."""
    from unblemish.export.engines.bundle_engines import build_engines
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    def make(method: str, schedule: str, **settings: Any) -> tuple[Inspector, Inspector]:
        plain = tiny_detector(tmp_path, method, **settings)
        tensorrt.on_execute = compute(tensorrt)
        built = build_engines(
            Bundle.open(plain.path), EngineOptions(batch=16, usual_batch=4, sizes=SIZES),
            memory=tensorrt.memory_of(tensorrt), say=lambda _: None,
        )  # fmt: skip
        assert plain.manifest.detector is not None
        bundle = calibrated(built, float(plain.manifest.detector.normal_peak or 0))
        tensorrt.drive(tensorrt, kernels.device.driver)
        backend = TensorRtBackend(tensorrt.memory, fallback=refused)
        device = Inspector.open(bundle, backend=backend, kernels=kernels, schedule=schedule)
        host = Inspector.open(plain, backend="onnxruntime", threads=1, schedule=schedule)
        return host, device

    return make


@pytest.mark.parametrize("method", ["patchcore", "cflow"])
def test_every_crop_is_scored_by_an_engine(opened: Open, method: str) -> None:
    host, device = opened(method, "fast", dilation=2, beta=0.02)
    frames = [spoilt(frame, (30, 36, 52, 58)) for frame in normal_frames(3, seed=9)]
    search: Any = device._search
    for frame, found in zip(frames, search.many(frames), strict=True):
        expected = host.search(frame)
        assert found.status is expected.status
        np.testing.assert_allclose(found.evidence, expected.evidence, rtol=1e-3)
        # Crops are those that engines were built for, so that other surroundings count.
        both, either = found.mask * expected.mask, np.maximum(found.mask, expected.mask)
        assert both.sum() > 0.8 * either.sum() > 0
    sizes = {size for _, size in search._detector.scoring.passes._held}
    assert len(sizes) > 1
    assert sizes <= set(SIZES)


def test_the_papers_schedule_is_captured(opened: Open) -> None:
    host, device = opened("patchcore", "paper", decrease=1e-6, **PAPER)
    frame = spoilt(normal_frames(1, seed=9)[0])
    found, expected = device.search(frame), host.search(frame)
    assert (found.status, found.steps) == (expected.status, expected.steps)
    np.testing.assert_allclose(found.trace, expected.trace, rtol=1e-3)
    np.testing.assert_array_equal(found.mask, expected.mask)
    search: Any = device._search
    (one,) = search._f2pad._search.elsewhere._held.values()
    assert one.replay.captured
