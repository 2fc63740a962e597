"""Whole searches by TensorRT's engines: its double on the driver double, against the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend
from tensorrt_results import compute
from tiny_detectors import calibrated, normal_frames, spoilt, tiny_detector

from unblemish import Inspector
from unblemish.bundle import Bundle
from unblemish.export.engines.options import EngineOptions

pytestmark = pytest.mark.parametrize("tensorrt", ["11.4.0.5"], indirect=True)


def built(world: Any, bundle: Bundle) -> Bundle:
    """The bundle with the engines that are built by default."""
    from unblemish.export.engines.bundle_engines import build_engines

    world.on_execute = compute(world)
    memory = world.memory_of(world)
    return build_engines(bundle, EngineOptions(), memory=memory, say=lambda _: None)


@contextmanager
def inspectors(world: Any, bundle: Bundle, kernels: Any, **options: Any) -> Iterator[Any]:
    """Of the host, and by engines on the device: another backend would say that it runs instead."""
    from unblemish.runtime.backends.tensorrt import TensorRtBackend

    world.drive(world, kernels.device.driver)
    backend = TensorRtBackend(world.memory, fallback=EmulatedBackend)
    world.calls.clear()
    with (
        Inspector.open(bundle, backend="onnxruntime", threads=1, **options) as host,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        with Inspector.open(bundle, backend=backend, kernels=kernels, **options) as ours:
            yield host, ours
    streams = {stream for (stream,) in world.called("IExecutionContext", "execute_async_v3")}
    assert streams == {kernels.stream}


def same(found: Any, expected: Any) -> None:
    assert found.verdict == expected.verdict
    assert found.status == expected.status
    assert ((found.mask > 0.5) != (expected.mask > 0.5)).mean() < 0.01


def frame(seed: int, height: int, width: int) -> Any:
    rng = np.random.default_rng(seed)
    down = np.cos(np.pi * np.outer((np.arange(height) + 0.5) / height, np.arange(3)))
    across = np.cos(np.pi * np.outer((np.arange(width) + 0.5) / width, np.arange(3)))
    image = down @ rng.uniform(-1, 1, (3, 3)) @ across.T
    shown = np.rint(130 + 60 * image / np.abs(image).max()).astype(np.uint8)
    if seed % 3:
        shown[6:11, 8 + seed % 4 : 14] = 255
    return shown


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_energy_projection_is_that_of_the_host(
    tensorrt: Any, make_energy_bundle: Any, kernels: Any, schedule: str
) -> None:
    bundle = built(tensorrt, make_energy_bundle(
        energy={"score": "l2", "lam": 0.02, "alpha": 0.3, "max_steps": 20},
        calibration={"pixel_threshold": 0.1, "image_threshold": 0.15, "false_reject_rate": 0.01,
                     "normals": 10, "seed": 0},
    ))  # fmt: skip
    frames = [frame(seed, 20, 24) for seed in range(5)]
    with inspectors(tensorrt, bundle, kernels, schedule=schedule) as (host, ours):
        for found, expected in zip(
            ours.inspect_many(frames), host.inspect_many(frames), strict=True
        ):
            same(found, expected)


@pytest.mark.parametrize("method", ["padim", "patchcore", "cflow"])
def test_detectors_score_as_on_the_host(
    tensorrt: Any, tmp_path: Path, kernels: Any, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = tiny_detector(tmp_path, method, dilation=3, beta=0.02)
    detector = made.manifest.detector
    assert detector is not None
    assert detector.normal_peak is not None
    bundle = calibrated(built(tensorrt, made), detector.normal_peak)
    frames = normal_frames(2)
    with inspectors(tensorrt, bundle, kernels) as (host, ours):
        for image in (spoilt(frames[0]), frames[1]):
            same(ours.inspect(image), host.inspect(image))
    assert "host" not in caplog.text
