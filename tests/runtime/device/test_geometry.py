"""Frames on their way to the model on the device, as the searches ask for them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from unblemish.bundle.manifest import Preprocess
from unblemish.errors import BackendError
from unblemish.runtime.device.engines import DeviceEngines
from unblemish.runtime.frames import to_unit
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.placement import geometry_at

P = Preprocess(width=24, height=20, channels=3, low=-1.0, high=1.0, geometry="tiles", scale=0.8)
# Sums of a few dozen products near 1 in float32, in another order than OpenCV's.
CLOSE = {"rtol": 0, "atol": 4e-6}


def _geometry(kernels: Any) -> Geometry:
    def load(path: str) -> Any:
        raise AssertionError("frames need no engine")

    return geometry_at(DeviceEngines(kernels, load), P)


@pytest.mark.parametrize("white", [None, 4095.0])
@pytest.mark.parametrize("shape", [(31, 57), (31, 57, 1), (31, 57, 2), (31, 57, 3), (31, 57, 4)])
def test_frames_become_the_images_of_the_host(
    any_kernels: Any, shape: tuple[int, ...], white: float | None
) -> None:
    rng = np.random.default_rng(0)
    dtype, most = (np.uint8, 255) if white is None else (np.uint16, 4095)
    frame = rng.integers(0, most, (2 * shape[0], *shape[1:]), dtype, endpoint=True)[::2]
    unit = to_unit(frame, white=white)
    found = _geometry(any_kernels).images_of(frame, unit, white)
    np.testing.assert_allclose(found, Geometry(P).unit_to_model(unit), **CLOSE)


def test_floats_stay_on_the_host(kernels: Any) -> None:
    frame = np.random.default_rng(0).random((31, 57, 3)).astype(np.float32)
    unit = to_unit(frame)
    found = _geometry(kernels).images_of(frame, unit, None)
    np.testing.assert_array_equal(found, Geometry(P).unit_to_model(unit))
    assert not kernels.device.driver.launched


def test_a_frame_that_finds_no_memory_is_resampled_on_the_host(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(nbytes: int) -> Any:
        raise BackendError("there is no memory.")

    monkeypatch.setattr(kernels.device.driver, "allocate", refuse)
    frame = np.random.default_rng(0).integers(0, 256, (31, 57, 3), np.uint8)
    unit = to_unit(frame)
    with caplog.at_level(logging.WARNING, "unblemish"):
        found = _geometry(kernels).images_of(frame, unit, None)
    np.testing.assert_array_equal(found, Geometry(P).unit_to_model(unit))
    assert "is resampled on the host: there is no memory" in caplog.text


def test_the_host_has_a_geometry_of_its_own() -> None:
    assert type(geometry_at(None, P)) is Geometry
