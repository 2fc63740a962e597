"""`unblemish inpaint` on a bundle whose right answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

Command = Callable[..., Any]

# The parts are rounded to 8 bits, and the generator is found from what lies outside of the hole.
LEVELS = 2


def read(path: Path) -> Any:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def flawless(parts: Path, modes: Any) -> dict[str, Any]:
    """The pictures of `parts` without their squares, (SIDE, SIDE) in grey levels, by name."""
    weights, mean = modes
    random, found = np.random.default_rng(5), {}
    for category, count in (("good", 3), ("hole", 2)):
        for index in range(count):
            image = mean + random.uniform(-1, 1, len(weights)) @ weights
            found[f"{category}/{index}"] = 255 * image.reshape(24, 24)
    return found


def test_masks_are_found_by_category_and_name(
    run: Command, bundle: Path, parts: Path, flawless: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("inpaint", bundle, parts / "test", "--masks", parts / "ground_truth", "--out", out)
    assert result.code == 0
    assert "5 images filled" in result.err
    for name, expected in flawless.items():
        restored, given = read(out / f"restored/{name}.png"), read(parts / f"test/{name}.png")
        assert np.abs(restored - expected).max() < LEVELS
        hole = np.zeros((24, 24), np.bool_)
        if name.startswith("hole"):
            hole = read(parts / f"ground_truth/{name}_mask.png") > 0
        np.testing.assert_array_equal(restored[~hole], given[~hole])
    lines = records(out / "results.jsonl")
    assert [line["hole_area"] for line in lines] == [0, 0, 0, 30, 30]
    assert not any(line["blind"] for line in lines)
    assert lines[3]["files"]["restored"] == "restored/hole/0.png"
    assert read(out / "grid.png").shape[0] > 5 * 300


def test_without_masks_the_hole_is_found_and_filled(
    run: Command, bundle: Path, parts: Path, flawless: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("inpaint", bundle, parts / "test" / "hole", "--out", out, "--json")
    assert result.code == 0
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert lines == records(out / "results.jsonl")
    for line in lines:
        assert line["blind"]
        assert line["hole_area"] == 30
        assert line["status"] in ("converged", "max_steps")
        restored = read(out / line["files"]["restored"])
        assert np.abs(restored - flawless[f"hole/{line['name']}"]).max() < LEVELS


def test_masks_of_inspect_and_one_for_all_give_the_same(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    image, mask = parts / "test/hole/0.png", parts / "ground_truth/hole/0_mask.png"
    run("inspect", bundle, image, "--out", tmp_path / "seen")
    masks = tmp_path / "seen" / "masks"
    assert run("inpaint", bundle, image, "--masks", masks, "--out", tmp_path / "a").code == 0
    assert run("inpaint", bundle, image, "--mask", mask, "--out", tmp_path / "b").code == 0
    one, other = (read(tmp_path / f"{way}/restored/0.png") for way in "ab")
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_depth_and_colour_stay(
    run: Command, bundle: Path, parts: Path, tmp_path: Path, dtype: Any
) -> None:
    grey = read(parts / "test/hole/0.png")
    level = 65535 if dtype == np.uint16 else 1
    picture = (np.stack([grey, grey, grey], axis=2) / 255 * level).astype(dtype)
    path = tmp_path / "in" / ("0.png" if dtype == np.uint16 else "0.tiff")
    path.parent.mkdir()
    assert cv2.imwrite(str(path), picture)
    mask = parts / "ground_truth/hole/0_mask.png"
    assert run("inpaint", bundle, path, "--mask", mask, "--out", tmp_path / "out").code == 0
    restored = read(tmp_path / "out" / "restored" / path.name)
    assert (restored.dtype, restored.shape) == (picture.dtype, picture.shape)
    hole = read(mask) > 0
    np.testing.assert_array_equal(restored[~hole], picture[~hole])
    assert (restored[hole] != picture[hole]).any()


def colours(mask: Any) -> Any:
    return np.stack([mask, 255 - mask, mask], axis=2)


BAD_MASKS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda mask: mask[:-2], "24 x 22 pixels"),
    (lambda mask: mask + np.arange(24, dtype=np.uint8), "levels"),
    (colours, "colours"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD_MASKS)
def test_a_bad_mask_is_a_record_and_the_others_are_filled(
    run: Command, bundle: Path, parts: Path, tmp_path: Path, spoil: Any, words: str
) -> None:
    masks, out = parts / "ground_truth", tmp_path / "out"
    path = masks / "hole/0_mask.png"
    assert cv2.imwrite(str(path), spoil(read(path)))
    result = run("inpaint", bundle, parts / "test", "--masks", masks, "--out", out)
    assert result.code == 2
    assert "4 images filled, 1 error" in result.err
    assert "Traceback" not in result.err
    lines = {line["name"]: line for line in records(out / "results.jsonl")}
    assert words in lines["hole/0"]["error"]
    assert "error" not in lines["hole/1"]
    assert not (out / "restored/hole/0.png").exists()


def test_a_missing_mask_or_damaged_image_is_a_record(
    run: Command, bundle: Path, parts: Path, tmp_path: Path
) -> None:
    (parts / "ground_truth/hole/0_mask.png").unlink()
    (parts / "test/good/1.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    result = run("inpaint", bundle, parts / "test", "--masks", parts / "ground_truth", "--out", out)
    assert result.code == 2
    errors = {line["name"]: line["error"] for line in records(out / "results.jsonl")
              if "error" in line}  # fmt: skip
    assert errors.keys() == {"hole/0", "good/1"}
    assert "no mask for" in errors["hole/0"]
    assert "3 images filled, 2 errors" in result.err


def test_wrong_use_is_refused(run: Command, bundle: Path, parts: Path, tmp_path: Path) -> None:
    test, out = parts / "test", tmp_path / "out"
    mask = parts / "ground_truth/hole/0_mask.png"
    for arguments, words in (
        (("--masks", parts / "ground_truth", "--mask", mask), "one mask for all"),
        (("--masks", mask), "is not a folder"),
        (("--mask", tmp_path / "none.png"), "does not exist"),
        (("--mask", parts / "test/good/0.png"), "is no mask"),
        (("--deadline-ms", 0), "more than 0"),
    ):
        result = run("inpaint", bundle, test, *arguments, "--out", out)
        assert result.code == 2
        assert result.err.startswith("error: "), result.err
        assert words in result.err
    result = run("inpaint", tmp_path / "none.bundle", test, "--out", out)
    assert (result.code, "is not a folder" in result.err) == (2, True)
