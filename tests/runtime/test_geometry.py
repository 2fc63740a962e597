"""Frames to model images and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unblemish.bundle.manifest import Preprocess
from unblemish.errors import ShapeError
from unblemish.runtime.geometry import Geometry, resize

GEOMETRIES = ("stretch", "letterbox", "tiles")
ROUNDING = 1e-6  # a handful of float32 operations on numbers near 1


def preprocess(**fields: object) -> Preprocess:
    return Preprocess.model_validate(
        {"width": 16, "height": 12, "channels": 3, "low": -1.0, "high": 1.0, **fields}
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", [(12, 16), (1, 1), (99, 37), (13, 200), (5, 7)])
def test_geometry_keeps_constants(geometry: str, size: tuple[int, int]) -> None:
    g = Geometry(preprocess(geometry=geometry))
    images = g.to_model(np.full(size, 191, np.uint8))
    assert images.shape == (g.tiles(size), 3, 12, 16)
    np.testing.assert_allclose(images, 2 * 191 / 255 - 1, atol=ROUNDING)
    native = g.to_native(images, size)
    assert native.shape == (*size, 3)
    np.testing.assert_allclose(native, 2 * 191 / 255 - 1, atol=ROUNDING)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    overlap=st.floats(0, 0.8),
    scale=st.sampled_from([0.5, 1.0, 1.7]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tiles_blend_with_windows_that_sum_to_one(
    height: int, width: int, overlap: float, scale: float
) -> None:
    g = Geometry(preprocess(geometry="tiles", overlap=overlap, scale=scale))
    ones = np.ones((g.tiles((height, width)), 1, 12, 16), np.float32)
    np.testing.assert_allclose(g.to_native(ones, (height, width)), 1.0, atol=ROUNDING)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_tiles_return_the_frame_when_unscaled(overlap: float) -> None:
    g = Geometry(preprocess(geometry="tiles", overlap=overlap, low=0.0))
    frame = np.random.default_rng(1).random((61, 47, 3)).astype(np.float32)
    np.testing.assert_allclose(g.to_native(g.to_model(frame), frame.shape), frame, atol=ROUNDING)


def test_stretch_is_exact_at_the_models_size() -> None:
    g = Geometry(preprocess(low=0.0))
    frame = np.random.default_rng(1).random((12, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(g.to_model(frame)[0].transpose(1, 2, 0), frame, atol=ROUNDING)


def test_letterbox_keeps_the_aspect_and_pads_by_replication() -> None:
    g = Geometry(Preprocess(width=20, height=20, channels=1, low=0, high=1, geometry="letterbox"))
    frame = np.zeros((10, 20), np.uint8)
    frame[0] = 255
    image = g.to_model(frame)[0, 0]
    np.testing.assert_array_equal(image[:6], 1.0)  # 5 rows of padding repeat the first row
    np.testing.assert_array_equal(image[6:], 0.0)
    np.testing.assert_array_equal(g.to_native(image[None, None], (10, 20))[..., 0], frame / 255)


def test_resize_averages_where_it_shrinks_and_never_overshoots() -> None:
    step = np.zeros((4, 8, 1), np.float32)
    step[:, 4:] = 1
    np.testing.assert_allclose(resize(step, 4, 2)[..., 0], [[0, 1]] * 4)
    grown = resize(step, 4, 37)
    assert grown.min() >= 0
    assert grown.max() <= 1


def test_to_native_refuses_tiles_of_another_frame() -> None:
    g = Geometry(preprocess(geometry="tiles"))
    images = g.to_model(np.zeros((40, 40), np.uint8))
    with pytest.raises(ShapeError, match="41x99 frame"):
        g.to_native(images, (99, 41))
