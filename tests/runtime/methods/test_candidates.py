"""Candidate masks: colours by expectation maximisation, differences, the prior, polarity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.runtime.methods.candidates import (
    candidate_masks,
    colour_odds,
    neighbouring_masks,
    palette_of,
    without_specks,
)
from unblemish.runtime.methods.decomposition import Prior

Bool = NDArray[np.bool_]
WINDOW = slice(10, 50), slice(8, 56)


def scene(channels: int, level: float = 0.8) -> tuple[Any, Bool, Bool, Any]:
    """Frame (C, 64, 64), truth and free pixels, and a map that is high around the truth."""
    rng = np.random.default_rng(channels)
    x = 0.4 + 0.03 * rng.standard_normal((channels, 64, 64))
    truth = np.zeros((64, 64), np.bool_)
    truth[24:34, 20:36] = True
    x[:, truth] = level + 0.02 * rng.standard_normal((channels, int(truth.sum())))
    free = np.zeros_like(truth)
    free[14:44, 10:46] = True
    strange = np.full((64, 64), -0.3, np.float32)
    strange[20:38, 16:40] = 0.5
    return np.clip(x, 0, 1).astype(np.float32), truth, free, strange


def dice(mask: Bool, truth: Bool) -> float:
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_of_the_defect_are_told_from_the_parts(channels: int) -> None:
    x, truth, free, strange = scene(channels)
    odds = colour_odds(palette_of(x, ~free), WINDOW, free[WINDOW], strange[WINDOW])
    # The odds are smoothed over a pixel, which takes the rim with it or leaves it.
    assert max(dice(odds > level, truth[WINDOW]) for level in (-2, 0, 1.5, 3, 5)) > 0.9
    assert np.isneginf(odds[~free[WINDOW]]).all()


def test_histograms_are_shares() -> None:
    x, _, free, _ = scene(3)
    palette = palette_of(x, ~free)
    assert palette.normal.shape == (22**3,)
    assert palette.normal.sum() == pytest.approx(1, abs=1e-5)
    assert palette.normal.min() >= 0
    inside = palette.histogram(palette.cell[WINDOW], free[WINDOW].astype(np.float32))
    assert inside.sum() == pytest.approx(1, abs=1e-5)


def masks_of(level: float, polarity: str = "both", area: float = 1.0) -> tuple[list[Bool], Bool]:
    x, truth, free, strange = scene(1, level)
    odds = colour_odds(palette_of(x, ~free), WINDOW, free[WINDOW], strange[WINDOW])
    fill = np.full_like(x, 0.4)
    prior = Prior(np.array([[0.4]], np.float32), np.array([[[1 / 0.03**2]]], np.float32))
    rarity = prior.distances(x[(slice(None), *WINDOW)])
    windows = [image[(slice(None), *WINDOW)] for image in (x, fill)]
    found = candidate_masks(*windows, free[WINDOW], odds, rarity, area, polarity)  # type: ignore[arg-type]
    return found, truth[WINDOW]


@pytest.mark.parametrize("level", [0.1, 0.8])
def test_some_candidate_is_the_defect_and_none_is_empty_or_twice(level: float) -> None:
    found, truth = masks_of(level)
    assert max(dice(mask, truth) for mask in found) > 0.97
    assert all(mask.any() for mask in found)
    assert all(not np.array_equal(a, b) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize(("level", "polarity", "seen"), [
    (0.1, "dark", True), (0.1, "bright", False), (0.8, "dark", False), (0.8, "bright", True),
])  # fmt: skip
def test_only_differences_of_the_stated_sign_are_candidates(
    level: float, polarity: str, seen: bool
) -> None:
    found, truth = masks_of(level, polarity)
    assert (max((dice(mask, truth) for mask in found), default=0) > 0.95) is seen
    if not seen:
        assert all(not (mask & truth).any() for mask in found)


def test_specks_are_dropped_by_area() -> None:
    mask = np.zeros((12, 12), np.bool_)
    mask[1, 1:4] = mask[5:7, 5:7] = mask[9, 9] = True
    kept = without_specks(mask, 4)
    assert kept.sum() == 4
    assert kept[5:7, 5:7].all()
    np.testing.assert_array_equal(without_specks(mask, 1), mask)
    assert not without_specks(mask, 5).any()


def test_neighbours_close_fill_open_and_drop_loose_parts() -> None:
    free = np.ones((40, 40), np.bool_)
    ring = np.zeros_like(free)
    ring[8:30, 8:30] = True
    ring[12:26, 12:26] = False
    ring[8:30, 18:20] = False  # the hole is open to the background: only closing reaches it
    loose = ring.copy()
    loose[35:38, 35:38] = True
    core = np.zeros_like(free)
    core[8:12, 8:17] = True
    found = neighbouring_masks(loose, free, core, 1.0)
    assert any(mask[9, 18] and not mask[20, 20] for mask in found)  # closed
    assert any(not mask[36, 36] and mask[9, 25] for mask in found)  # without the small part
    assert any(mask[9, 9] and not mask[9, 25] for mask in found)  # only what touches the core
    whole = ring.copy()
    whole[8:12, 18:20] = whole[26:30, 18:20] = True
    assert any(mask[20, 20] for mask in neighbouring_masks(whole, free, core, 1.0))  # filled
    assert all(mask.any() and not np.array_equal(mask, loose) for mask in found)


def test_neighbours_stay_within_what_may_move() -> None:
    free = np.zeros((20, 20), np.bool_)
    free[:, :10] = True
    mask = free.copy()
    mask[4:7, 4:7] = False
    assert all((found <= free).all() for found in neighbouring_masks(mask, free, mask, 1.0))
    assert neighbouring_masks(np.zeros_like(free), free, mask, 1.0) == []
