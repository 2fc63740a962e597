"""Frames of every kind, good and bad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ConfigError, SourceError
from unblemish.runtime.frames import from_unit, to_channels, to_unit, white_for


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (np.full((3, 5), 51, np.uint8), 0.2),
        (np.full((3, 5), 13107, np.uint16), 0.2),
        (np.full((3, 5), 0.2, np.float64), 0.2),
        (np.full((3, 5, 1), 51, np.uint8), 0.2),
    ],
)
def test_to_unit_scales_by_dtype(frame: np.ndarray[Any, Any], expected: float) -> None:
    unit = to_unit(frame)
    assert unit.shape == (3, 5, 1)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, expected, rtol=1e-6)  # float32 rounding


def test_to_unit_uses_white_when_stated() -> None:
    frame = np.full((2, 2), 4095, np.uint16)
    np.testing.assert_array_equal(to_unit(frame, white=4095), 1.0)


@pytest.mark.parametrize(("channels", "kept"), [(2, 1), (4, 3)])
def test_to_unit_drops_alpha(channels: int, kept: int) -> None:
    frame = np.zeros((4, 4, channels), np.uint8)
    frame[..., -1] = 255
    unit = to_unit(frame)
    assert unit.shape == (4, 4, kept)
    assert unit.max() == 0.0


def test_to_unit_copies_and_accepts_strides() -> None:
    frame = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    unit = to_unit(frame[::2, ::-1])
    assert unit.flags.c_contiguous
    assert not np.shares_memory(unit, frame)
    same = to_unit(frame)
    assert not np.shares_memory(same, frame)
    np.testing.assert_array_equal(same, frame)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (None, "NoneType"),
        ([[1, 2]], "list"),
        (np.zeros((2, 2), np.int32), "dtype int32"),
        (np.zeros((2, 2), np.bool_), "dtype bool"),
        (np.zeros((2, 2), np.complex64), "dtype complex64"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((2, 2, 5), np.uint8), r"shape \(2, 2, 5\)"),
        (np.zeros((2, 2, 0), np.uint8), r"shape \(2, 2, 0\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), "one frame at a time"),
        (np.zeros((0, 4), np.uint8), "empty"),
        (np.full((2, 2), np.nan, np.float32), "NaN"),
        (np.full((2, 2), np.inf), "NaN or infinite"),
        (np.full((2, 2), 255.0), r"\[0, 1\]; found \[255, 255\]"),
        (np.full((2, 2), -0.5), "found"),
    ],
)
def test_to_unit_refuses_with_what_was_found(frame: Any, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        to_unit(frame)


def test_to_unit_refuses_values_above_white() -> None:
    with pytest.raises(SourceError, match="white level"):
        to_unit(np.full((2, 2), 5000, np.uint16), white=4095)


@pytest.mark.parametrize("white", [0, -1, float("nan")])
def test_to_unit_refuses_senseless_white(white: float) -> None:
    with pytest.raises(ConfigError, match="white"):
        to_unit(np.zeros((2, 2), np.uint8), white=white)


def test_to_channels_takes_luma_and_repeats_grey() -> None:
    colour = np.array([[[0.5, 0.25, 1.0]]], np.float32)
    luma = 0.299 * 0.5 + 0.587 * 0.25 + 0.114 * 1.0  # Rec. 601
    np.testing.assert_allclose(to_channels(colour, 1), [[[luma]]], rtol=1e-5)
    grey = np.array([[[0.3]]], np.float32)
    np.testing.assert_array_equal(to_channels(grey, 3), np.full((1, 1, 3), 0.3, np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_from_unit_undoes_to_unit(dtype: type[np.generic]) -> None:
    levels = np.iinfo(dtype).max  # type: ignore[type-var]
    frame = np.linspace(0, levels, 256).astype(dtype).reshape(16, 16)
    np.testing.assert_array_equal(from_unit(to_unit(frame), np.dtype(dtype)), frame)


def test_from_unit_clips_and_blackens_nan() -> None:
    unit = np.array([[[-1.0], [2.0], [np.nan]]], np.float32)
    np.testing.assert_array_equal(from_unit(unit, np.dtype(np.uint8)), [[0, 255, 0]])


@pytest.mark.parametrize(
    ("dtype", "asked", "stated", "expected"),
    [
        (np.uint16, None, None, None),
        (np.uint16, None, 4095.0, 4095.0),
        (np.uint16, 1023.0, 4095.0, 1023.0),
        (np.uint8, None, 200.0, 200.0),
        (np.uint8, None, 4095.0, None),
        (np.float32, None, 4095.0, None),
        (np.float32, 4095.0, None, 4095.0),
    ],
)
def test_white_of_the_bundle_counts_for_integers_that_can_hold_it(
    dtype: type, asked: float | None, stated: float | None, expected: float | None
) -> None:
    assert white_for(np.zeros((2, 2), dtype), asked, stated) == expected
