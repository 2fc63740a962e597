"""The sample parts: the same each time, and masks that are where the picture differs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# Grey levels that the lens spreads over the border of a defect and the noise adds stay below this;
# every kind of defect changes most of its own pixels by more.
VISIBLE = 6


@pytest.fixture(scope="module")
def renderer() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("render_parts")
    sys.path.remove(str(EXAMPLES))


def test_equal_seeds_give_equal_pictures(renderer: ModuleType) -> None:
    np.testing.assert_array_equal(renderer.normal_part((7, 0, 1)), renderer.normal_part((7, 0, 1)))
    assert (renderer.normal_part((7, 0, 1)) != renderer.normal_part((7, 0, 2))).any()


@pytest.mark.parametrize("defect", ["scratch", "dent", "stain", "chip", "crack"])
def test_mask_is_where_the_defect_shows(renderer: ModuleType, defect: str) -> None:
    shot = renderer.Shot((2.0, -1.0), 1.5, (-40.0, -90.0), 1.0, 0.5)
    clean = renderer.clean_surface()
    surface, inside = renderer.DEFECTS[defect](clean, np.random.default_rng(3))
    with_it = renderer.photograph(surface, shot, np.random.default_rng(0)).astype(int)
    without = renderer.photograph(clean, shot, np.random.default_rng(0)).astype(int)
    seen = np.abs(with_it - without) > VISIBLE
    mask = renderer.mask_of(inside, shot) > 0
    near = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert mask.any()
    assert not (seen & ~near).any()
    assert (seen & mask).sum() > 0.5 * mask.sum()


def test_layout_is_that_of_mvtec(renderer: ModuleType, tmp_path: Path) -> None:
    renderer.render(tmp_path, train=1, calibrate=1, good=1, per_defect=1, seed=1)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert len(written) == 3 + 2 * 5
    assert "ground_truth/dent/0000_mask.png" in written
    mask = cv2.imread(str(tmp_path / "ground_truth/dent/0000_mask.png"), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(mask)) == {0, 255}
