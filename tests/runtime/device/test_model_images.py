"""Model images of any frames on the device, against those of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.bundle.manifest import Preprocess
from unblemish.errors import ShapeError, SourceError
from unblemish.runtime.device.frames.model_images import FramesOnDevice
from unblemish.runtime.geometry import Geometry

# Sums of a few dozen products near 1 in float32, in another order than OpenCV's.
CLOSE = {"rtol": 0, "atol": 4e-6}


def _frame(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.floating):
        return rng.random(shape).astype(dtype)
    return rng.integers(0, 4095 if dtype == np.uint16 else 255, shape, endpoint=True).astype(dtype)


FRAMES = [
    _frame((40, 56), np.uint8),
    _frame((97, 31, 3), np.uint16, 1),
    _frame((64, 48, 3), np.float32, 2),
    _frame((19, 23, 4), np.uint8, 3),
    _frame((40, 56), np.uint8, 4),
    _frame((30, 30), np.float64, 5),
]
WHITES = [None, 4095.0, None, 200.0, None, None]


def _preprocess(geometry: str = "tiles", channels: int = 3) -> Preprocess:
    return Preprocess(
        width=24, height=20, channels=channels, low=-1.0, high=1.0, geometry=geometry, scale=0.8
    )


@pytest.mark.parametrize("geometry", ["stretch", "letterbox", "tiles"])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_of_any_kind_become_the_images_of_the_cpu(
    any_kernels: Any, geometry: str, channels: int
) -> None:
    p = _preprocess(geometry, channels)
    take = FramesOnDevice(p, any_kernels.device)
    frames = [f if w != 200.0 else np.minimum(f, 200) for f, w in zip(FRAMES, WHITES, strict=True)]
    found = any_kernels.device.to_host(take(frames, whites=WHITES))
    expected = [Geometry(p).to_model(f, white=w) for f, w in zip(frames, WHITES, strict=True)]
    np.testing.assert_allclose(found, np.concatenate(expected), **CLOSE)


def test_frames_may_change_at_once_and_memory_of_kinds_is_bounded(any_kernels: Any) -> None:
    p = _preprocess("stretch", 1)
    take = FramesOnDevice(p, any_kernels.device)
    frames = [_frame((20 + i, 30), np.uint8, i) for i in range(9)] * 2
    expected = np.concatenate([Geometry(p).to_model(frame) for frame in frames])
    copies = [frame.copy() for frame in frames]
    out = any_kernels.device.empty(take.shape(copies))
    assert take(copies, out=out) is out
    for copy in copies:
        copy[...] = 0
    np.testing.assert_allclose(any_kernels.device.to_host(out), expected, **CLOSE)
    assert len(take._kinds) == 4


def test_the_memory_of_a_kind_is_made_once(kernels: Any) -> None:
    take = FramesOnDevice(_preprocess("letterbox"), kernels.device)
    frames, out = FRAMES[:2], kernels.device.empty((2, 3, 20, 24))
    take(frames, out=out)
    kernels.synchronise()
    allocations, waits = kernels.device.driver.allocations, kernels.device.driver.waits
    take(frames, out=out)
    assert kernels.device.driver.allocations == allocations
    assert kernels.device.driver.waits == waits


def test_what_does_not_fit_is_refused(any_kernels: Any) -> None:
    take = FramesOnDevice(_preprocess("stretch", 1), any_kernels.device)
    for shape, dtype in (((2, 1, 20, 24), np.float32), ((1, 1, 20, 24), np.float64)):
        with pytest.raises(ShapeError, match="out is"):
            take(FRAMES[:1], out=any_kernels.device.empty(shape, dtype))
    for frame in (np.full((8, 8), np.nan, np.float32), np.zeros((8, 8, 5), np.uint8)):
        with pytest.raises(SourceError):
            take([frame])
