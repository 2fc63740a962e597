"""Known holes by generators, and blind inpainting: what is found is filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.bundle import Bundle
from unblemish.errors import ConfigError, SourceError
from unblemish.runtime.found import Found
from unblemish.runtime.inspection import Status
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.restored import changed_by_much

MakeBundle = Callable[..., Bundle]
BOX = (slice(5, 9), slice(6, 11))


def smooth(seed: int = 0) -> Any:
    """A frame (16, 16) uint8 that the smooth autoencoder makes itself."""
    rng = np.random.default_rng(seed)
    wave = np.cos(np.pi * np.outer((np.arange(16) + 0.5) / 16, np.arange(3)))
    image = wave @ rng.uniform(-1, 1, (3, 3)) @ wave.T
    return np.rint(130 + 60 * image / np.abs(image).max()).astype(np.uint8)


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_a_generator_fills_by_what_lies_outside_of_the_hole(
    tiny_bundle: Bundle, part: tuple[Any, Any, Any], schedule: str
) -> None:
    frame, clean, truth = part
    hole = truth.copy()
    hole[0:3, 0:2] = True
    noisy = clean.copy()
    noisy[hole] = np.random.default_rng(0).random(noisy[hole].shape)
    with Inspector.open(tiny_bundle, schedule=schedule, max_steps=300) as inspector:
        filled = inspector.inpaint(noisy, hole)
        again = inspector.inpaint(np.where(hole[:, :, None], np.float32(0.5), clean), hole)
    np.testing.assert_array_equal(filled[~hole], clean[~hole])
    assert np.abs(filled - clean).max() < 0.02
    np.testing.assert_array_equal(filled, again)  # what the hole held does not count
    assert np.abs(frame - clean).max() > 0.3


def test_a_generator_keeps_its_deadline(tiny_bundle: Bundle, part: tuple[Any, Any, Any]) -> None:
    _, clean, hole = part
    ticks = iter(np.arange(0, 1000, 0.5))
    with Inspector.open(tiny_bundle, clock=lambda: float(next(ticks))) as inspector:
        filled = inspector.inpaint(clean, hole, deadline_ms=1.0)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[~hole], clean[~hole])


def test_a_blind_hole_is_found_and_leaves_no_shadow(make_energy_bundle: MakeBundle) -> None:
    clean = smooth()
    bad = clean.copy()
    bad[BOX] = 255
    with Inspector.open(make_energy_bundle()) as inspector:
        restored = inspector.restore(bad)
        searched = inspector.search(bad).restored
    inside = np.zeros(clean.shape, np.bool_)
    inside[BOX] = True
    assert (restored.hole & inside).sum() > 0.9 * inside.sum()
    np.testing.assert_array_equal(restored.image[~restored.hole], bad[~restored.hole])
    after, before = (np.abs(i.astype(float) - clean).mean() for i in (restored.image, searched))
    assert after < before


def test_a_generator_restores_blind(tiny_bundle: Bundle, part: tuple[Any, Any, Any]) -> None:
    frame, clean, truth = part
    with Inspector.open(tiny_bundle) as inspector:
        restored = inspector.restore(frame)
    assert restored.hole[truth].mean() > 0.9
    np.testing.assert_array_equal(restored.image[~restored.hole], frame[~restored.hole])
    assert np.abs(restored.image - clean).max() < 0.1


def test_a_normal_frame_is_left_to_the_search(make_energy_bundle: MakeBundle) -> None:
    frame = smooth(1)
    with Inspector.open(make_energy_bundle()) as inspector:
        restored = inspector.restore(frame)
        np.testing.assert_array_equal(restored.image, inspector.search(frame).restored)
    assert not restored.hole.any()


def found(restored: Any) -> Found:
    zeros = np.zeros(restored.shape[:2], np.float32)
    return Found(restored, zeros, zeros, np.zeros((1, 0), np.float32), Status.CONVERGED, 1, 0.0, ())


def test_a_hole_is_what_changed_by_a_tenth_of_white() -> None:
    frame = np.full((12, 14, 3), 100, np.uint8)
    restored = frame.copy()
    restored[3, 4, 1], restored[3, 6, 0], restored[8, 9] = 140, 60, 124  # the last a shade
    hole = changed_by_much(frame, found(restored), None)
    expected = np.zeros((12, 14), np.bool_)
    expected[3, 4:7] = True  # and the pixel between them
    np.testing.assert_array_equal(hole, expected)
    assert not changed_by_much(frame, found(restored), 4095.0).any()
    assert not changed_by_much(frame, found(np.full_like(frame, 200)), None).any()


def test_grey_and_colour_are_compared_as_grey() -> None:
    frame, restored = np.full((12, 14, 3), 100, np.uint8), np.full((12, 14), 100, np.uint8)
    restored[2:4, 3:5] = 200
    hole = changed_by_much(frame, found(restored), None)
    assert hole.sum() == 4


def test_a_closed_inspector_and_a_bad_frame_are_refused(make_energy_bundle: MakeBundle) -> None:
    inspector = Inspector.open(make_energy_bundle())
    with pytest.raises(SourceError):
        inspector.restore(np.zeros((0, 4), np.uint8))
    with pytest.raises(ConfigError, match="deadline_ms"):
        inspector.inpaint(smooth(), np.zeros((16, 16), np.bool_), deadline_ms=-1.0)
    inspector.close()
    with pytest.raises(ConfigError, match="closed"):
        inspector.restore(smooth())
