"""Synthetic defects: size, thinness, connectedness, and eq. 16 to the pixel."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from unblemish.calibration.defects import FILLS, SHAPES, draw_shape, paste_defect
from unblemish.errors import ConfigError, ShapeError

SIZES = [(128, 128), (16, 16), (403, 222), (60, 900)]


def _parts(mask) -> int:
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_draw_shape_gives_a_mask_of_the_frame(shape, size, rng) -> None:
    for _ in range(20):
        mask = draw_shape(shape, *size, rng)
        assert mask.dtype == np.bool_
        assert mask.shape == size
        assert 4 <= mask.sum() < 0.5 * mask.size
        if shape != "mixed_large":
            assert _parts(mask) == 1


def test_mixed_large_covers_more_than_400_px_at_128(rng) -> None:
    areas = [draw_shape("mixed_large", 128, 128, rng).sum() for _ in range(50)]
    assert min(areas) > 400
    assert max(areas) < 0.3 * 128**2


def test_irregular_keeps_its_share_of_the_frame(rng) -> None:
    for side in (128, 512):
        shares = [draw_shape("irregular", side, side, rng).mean() for _ in range(30)]
        # Drawn between 0.15 and 2 %; the bisection ends within a few pixels above.
        assert min(shares) > 0.001
        assert max(shares) < 0.025


def _length(mask) -> float:
    """Diagonal of the bounding box: no longer than the curve inside."""
    rows, columns = np.nonzero(mask)
    return math.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)


@pytest.mark.parametrize("side", [128, 512])
def test_scratch_is_long_and_thin(side, rng) -> None:
    for _ in range(30):
        mask = draw_shape("scratch", side, side, rng)
        half_width = float(distance_transform_edt(np.pad(mask, 1)).max())
        assert half_width <= 0.012 * side / 2 + 1.5  # half the width, and the raster's rounding
        assert mask.sum() < 0.25 * _length(mask) ** 2
        assert _length(mask) > 0.1 * side


def test_crack_is_thin_varies_in_width_and_branches(rng) -> None:
    widths = []
    for _ in range(30):
        mask = draw_shape("crack", 256, 256, rng)
        depth = distance_transform_edt(np.pad(mask, 1))
        widths.append(float(depth.max()))
        assert depth.max() <= 0.025 * 256  # branches that run side by side may merge
        assert mask.sum() < 0.3 * _length(mask) ** 2
    assert np.std(widths) > 0.2


def _frame(kind: str, rng: np.random.Generator):
    ramp = np.linspace(0, 1, 96)[None, :] * np.ones((72, 1))
    noisy = np.clip(ramp + rng.normal(0, 0.05, ramp.shape), 0, 1)
    if kind == "grey8":
        return (noisy * 255).astype(np.uint8)
    if kind == "grey16":
        return (noisy * 65535).astype(np.uint16)
    if kind == "float":
        return noisy.astype(np.float32)
    if kind == "one_channel":
        return (noisy * 255).astype(np.uint8)[..., None]
    return (np.stack([noisy, noisy**2, 1 - noisy], axis=2) * 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["grey8", "grey16", "float", "one_channel", "colour8"])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_paste_defect_is_exact_outside_and_contrasts_inside(shape, fill, kind, rng) -> None:
    frame = _frame(kind, rng)
    before = frame.copy()
    white = 1.0 if kind == "float" else float(np.iinfo(frame.dtype).max)
    found = paste_defect(frame, rng, shape=shape, fill=fill, contrast=0.1)
    assert found.image.dtype == frame.dtype
    assert found.image.shape == frame.shape
    np.testing.assert_array_equal(frame, before)
    np.testing.assert_array_equal(found.image[~found.mask], frame[~found.mask])
    change = np.abs(found.image.astype(np.float64) - frame.astype(np.float64))[found.mask]
    change = change.reshape(len(change), -1).max(axis=1)
    assert change.min() >= 0.1 * white * (1 - 1e-6)  # float32 rounding of the sum
    assert found.image.min() >= 0
    assert found.image.max() <= white


def test_mean_fill_is_the_mean_of_what_it_covers_where_that_contrasts(rng) -> None:
    frame = np.zeros((64, 64), np.float64)
    frame[:, 32:] = 1.0
    found = paste_defect(frame, rng, shape="mixed_large", fill="mean", contrast=0.01)
    covered = frame[found.mask].mean()
    if 0.01 < covered < 0.99:
        np.testing.assert_allclose(found.image[found.mask], covered, rtol=0, atol=1e-12)


def test_paste_defect_leaves_alpha_alone(rng) -> None:
    frame = rng.integers(0, 256, (40, 40, 4), dtype=np.uint8)
    found = paste_defect(frame, rng, shape="irregular", fill="random")
    np.testing.assert_array_equal(found.image[..., 3], frame[..., 3])
    change = np.abs(found.image.astype(int) - frame.astype(int))[found.mask][:, :3]
    assert change.max(axis=1).min() >= 26


def test_paste_defect_stays_below_the_stated_white(rng) -> None:
    frame = rng.integers(0, 4096, (40, 40), dtype=np.uint16)
    for _ in range(10):
        found = paste_defect(frame, rng, shape="irregular", fill="random", white=4095)
        assert found.image.max() <= 4095


@pytest.mark.parametrize("level", [0, 255])
def test_contrast_turns_round_where_there_is_no_room(level, rng) -> None:
    frame = np.full((64, 64, 3), level, np.uint8)
    found = paste_defect(frame, rng, shape="irregular", fill="mean", contrast=0.2)
    expected = abs(level - 51)
    np.testing.assert_array_equal(found.image[found.mask], expected)


def test_paste_defect_is_deterministic_given_the_generator() -> None:
    frame = _frame("colour8", np.random.default_rng(3))
    for shape in SHAPES:
        first = paste_defect(frame, np.random.default_rng(5), shape=shape, fill="random")
        second = paste_defect(frame, np.random.default_rng(5), shape=shape, fill="random")
        other = paste_defect(frame, np.random.default_rng(6), shape=shape, fill="random")
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.mask, second.mask)
        assert not np.array_equal(first.mask, other.mask)


def test_paste_defect_says_what_is_wrong(rng) -> None:
    frame = np.zeros((64, 64), np.uint8)
    with pytest.raises(ConfigError, match="unknown defect shape 'dent'; choose one of crack"):
        paste_defect(frame, rng, shape="dent", fill="mean")
    with pytest.raises(ConfigError, match="unknown defect fill 'plaid'"):
        paste_defect(frame, rng, shape="crack", fill="plaid")
    with pytest.raises(ConfigError, match=r"contrast must be in \(0, 0.45\]"):
        paste_defect(frame, rng, shape="crack", fill="mean", contrast=0.9)
    with pytest.raises(ConfigError, match="8 x 64 px is too small"):
        paste_defect(frame[:8], rng, shape="crack", fill="mean")
    with pytest.raises(ShapeError, match="found int32"):
        paste_defect(frame.astype(np.int32), rng, shape="crack", fill="mean")
    with pytest.raises(ShapeError, match="found shape"):
        paste_defect(frame[None, None], rng, shape="crack", fill="mean")


def test_contact_sheet_shows_every_shape_and_fill(rng) -> None:
    from unblemish.calibration.defects.sheet import contact_sheet

    sheet = contact_sheet([rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)])
    assert sheet.shape == (2 * len(FILLS) * 192, len(SHAPES) * 192, 3)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("polarity", "sign"), [("dark", -1), ("bright", 1)])
def test_paste_defect_keeps_to_its_polarity(polarity, sign, fill, rng) -> None:
    frame = rng.uniform(0.2, 0.8, (64, 64, 3))
    for shape in SHAPES:
        pasted = paste_defect(frame, rng, shape=shape, fill=fill, polarity=polarity)
        change = (pasted.image - frame)[pasted.mask]
        assert (sign * change).min() >= 0.1 - 1e-9
        assert pasted.image.min() >= 0
        assert pasted.image.max() <= 1


def test_paste_defect_ends_at_black_where_there_is_no_room(rng) -> None:
    frame = np.full((64, 64), 5, np.uint8)
    pasted = paste_defect(frame, rng, shape="irregular", fill="mean", polarity="dark")
    assert (pasted.image[pasted.mask] == 0).all()
