"""Frames to model images on the device, against the same on the CPU."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from unblemish.bundle.manifest import Preprocess
from unblemish.errors import SourceError
from unblemish.runtime.device.frames import DeviceFrames
from unblemish.runtime.device.frames.filters import axis_filter
from unblemish.runtime.geometry import Geometry

# Sums of a few dozen products near 1 in float32, in another order than OpenCV's.
CLOSE = {"rtol": 0, "atol": 4e-6}

SIZES = [(40, 56), (19, 23), (64, 48), (97, 31), (64, 64)]


def _frame(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize("source", [1, 2, 7, 64, 99])
@pytest.mark.parametrize("target", [1, 3, 7, 33, 64, 200])
def test_filters_are_those_of_opencv(source: int, target: int) -> None:
    if source == target:
        assert axis_filter(source, target) is None
        return
    found = axis_filter(source, target)
    assert found is not None
    line = np.random.default_rng(1).random((1, source), dtype=np.float32)
    way = cv2.INTER_AREA if target < source else cv2.INTER_CUBIC
    expected = cv2.resize(line, (target, 1), interpolation=way)[0]
    columns = found.start[:, None] + np.arange(found.weights.shape[1])
    assert columns.min() >= 0
    assert columns.max() < source
    np.testing.assert_allclose((found.weights * line[0][columns]).sum(axis=1), expected, **CLOSE)


@pytest.mark.parametrize("geometry", ["stretch", "letterbox", "tiles"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("channels", "given"), [(1, ()), (1, (3,)), (3, (4,)), (3, (2,)), (1, (1,))]
)
def test_frames_are_those_of_the_cpu(
    any_kernels: Any, geometry: str, size: tuple[int, int], channels: int, given: tuple[int, ...]
) -> None:
    p = Preprocess(
        width=48, height=40, channels=channels, low=-1.0, high=1.0, geometry=geometry, scale=0.8
    )
    frame = _frame((*size, *given), np.uint8)
    ours = DeviceFrames(any_kernels.device, p, frame.shape, frame.dtype)
    found = any_kernels.device.to_host(ours.enqueue([frame]))
    np.testing.assert_allclose(found, Geometry(p).to_model(frame), **CLOSE)


def test_several_frames_of_twelve_bits_follow_each_other(any_kernels: Any) -> None:
    p = Preprocess(width=24, height=30, channels=1, low=0.0, high=1.0)
    ours = DeviceFrames(any_kernels.device, p, (33, 70), np.dtype(np.uint16), frames=3, white=4095)
    out = any_kernels.device.empty((3, 1, 30, 24))
    for call in range(3):
        frames = [_frame((33, 70), np.uint16, 10 * call + i) % 4096 for i in range(3)]
        expected = [Geometry(p).to_model(f, white=4095) for f in frames]
        assert ours.enqueue(frames, out) is out
        for frame in frames:
            frame[...] = 0  # the caller's to change
        np.testing.assert_allclose(
            any_kernels.device.to_host(out), np.concatenate(expected), **CLOSE
        )


def test_frames_on_their_way_are_not_overwritten(any_kernels: Any) -> None:
    p = Preprocess(width=8, height=8, channels=1, low=0.0, high=1.0)
    ours = DeviceFrames(any_kernels.device, p, (8, 8), np.dtype(np.uint8))
    frames = [_frame((8, 8), np.uint8, seed) for seed in range(5)]
    outs = [any_kernels.device.empty((1, 1, 8, 8)) for _ in frames]
    for frame, out in zip(frames, outs, strict=True):
        ours.enqueue([frame], out)
    for frame, out in zip(frames, outs, strict=True):
        np.testing.assert_allclose(
            any_kernels.device.to_host(out), Geometry(p).to_model(frame), **CLOSE
        )


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8), np.float32), ((8,), np.uint8), ((8, 8, 5), np.uint8)]
)
def test_other_frames_are_refused(any_kernels: Any, shape: tuple[int, ...], dtype: Any) -> None:
    p = Preprocess(width=8, height=8, channels=1, low=0.0, high=1.0)
    with pytest.raises(SourceError, match="uint8 or uint16"):
        DeviceFrames(any_kernels.device, p, shape, np.dtype(dtype))


def test_frames_that_were_not_announced_are_refused(any_kernels: Any) -> None:
    p = Preprocess(width=8, height=8, channels=1, low=0.0, high=1.0)
    ours = DeviceFrames(any_kernels.device, p, (8, 8), np.dtype(np.uint8))
    for frames in ([], [np.zeros((8, 9), np.uint8)], [np.zeros((8, 8), np.uint16)]):
        with pytest.raises(SourceError, match="announced"):
            ours.enqueue(frames)
