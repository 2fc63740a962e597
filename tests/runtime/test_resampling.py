"""Resampling matrices against the geometry that they stand for."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from unblemish.bundle.manifest import Preprocess
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.resampling import axes

# float32 sums of at most a few hundred products, in another order.
ROUNDING = 2e-6
# Where an axis grows, the geometry clips overshoot; the frames below hardly overshoot.
CLIPPED = 1e-3

CASES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({}, (103, 222)),
    ({}, (300, 401)),
    ({}, (64, 48)),
    ({}, (64, 96)),
    ({"geometry": "letterbox"}, (103, 322)),
    ({"geometry": "letterbox"}, (301, 90)),
    ({"geometry": "tiles", "scale": 0.7}, (103, 222)),
    ({"geometry": "tiles", "scale": 1.0}, (50, 40)),
    ({"geometry": "tiles", "scale": 1.0}, (150, 140)),
]
GROWING: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({}, (40, 30)),
    ({}, (40, 90)),
    ({"geometry": "letterbox"}, (60, 37)),
    ({"geometry": "tiles", "scale": 1.3}, (90, 40)),
]


def preprocess(**changes: Any) -> Preprocess:
    return Preprocess(width=48, height=64, channels=1, low=0, high=1, **changes)


@pytest.mark.parametrize(("changes", "shape"), CASES + GROWING)
def test_matrices_give_the_model_images(changes: dict[str, Any], shape: tuple[int, int]) -> None:
    p = preprocess(**changes)
    noise = np.random.default_rng(0).random(shape).astype(np.float32)
    frame = 0.3 + 0.4 * cv2.GaussianBlur(noise, (0, 0), 3)
    images = Geometry(p).unit_to_model(frame[:, :, None])
    tolerance = CLIPPED if (changes, shape) in GROWING else ROUNDING
    for tile, image in enumerate(images):
        rows, columns = axes(p, shape, tile)
        down = rows.matrix((0, 64), (0, shape[0]))
        across = columns.matrix((0, 48), (0, shape[1]))
        np.testing.assert_allclose(down @ frame @ across.T, image[0], atol=tolerance)


@pytest.mark.parametrize(("changes", "shape"), CASES + GROWING)
def test_spans_hold_all_that_is_seen(changes: dict[str, Any], shape: tuple[int, int]) -> None:
    p = preprocess(**changes)
    for tile in range(Geometry(p).tiles(shape)):
        for axis, length in zip(axes(p, shape, tile), (64, 48), strict=True):
            matrix = axis.matrix((0, length), (0, axis.source))
            for first, last in ((0, 5), (7, 20), (length - 6, length)):
                low, high = axis.native_span((first, last))
                part = matrix[first:last]
                assert not part[:, :low].any()
                assert not part[:, high:].any()
                window = axis.matrix((first, last), (low, high))
                np.testing.assert_array_equal(window, part[:, low:high])
            for first, last in ((0, 3), (9, 21), (axis.source - 4, axis.source)):
                low, high = axis.model_span((first, last))
                seen = matrix[:, first:last]
                assert not seen[:low].any()
                assert not seen[high:].any()
