"""Metrics against scikit-learn and brute force."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import auc, roc_auc_score, roc_curve

from unblemish.calibration.metrics import (
    ScoreCounts,
    best_dice,
    dice,
    evaluate,
    find_truth,
    image_auroc,
    iou,
    read_truth,
)
from unblemish.errors import ShapeError, SourceError

# Float sums of the same numbers in another order.
ROUNDING = 1e-12
# Scores within 2^-11 are ties: a pair changes by at most a half, and only pairs that close do.
BINNED = 1e-3


def _maps(rng: np.random.Generator, count: int, levels: int | None = None):
    """Score maps with defects that score higher; `levels` rounds scores to force ties."""
    for index in range(count):
        truth = np.zeros((40, 57), np.bool_)
        truth[5 : 9 + index, 10:20] = True
        truth[30:33, 40:56] = True
        score = rng.gamma(2.0, 0.1, truth.shape).astype(np.float32) + 0.25 * truth.astype(
            np.float32
        )
        if levels:
            # Multiples of a power of two survive the binning exactly.
            score = np.round(score * levels).astype(np.float32) / np.float32(levels)
        yield score, truth


def _brute_best_dice(score: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    return max(dice(score >= level, truth) or 0.0 for level in np.unique(score))


def test_dice_and_iou_equal_their_definition() -> None:
    mask = np.array([[1, 1, 0, 0]], np.bool_)
    truth = np.array([[0, 255, 255, 255]], np.uint8)
    assert dice(mask, truth) == pytest.approx(2 * 1 / (2 + 3))
    assert iou(mask, truth) == pytest.approx(1 / 4)


def test_dice_and_iou_are_undefined_when_both_masks_are_empty() -> None:
    empty = np.zeros((3, 3), np.bool_)
    assert dice(empty, empty) is None
    assert iou(empty, empty) is None


def test_dice_refuses_maps_of_another_size() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 4\).*\(4, 3\)"):
        dice(np.zeros((3, 4), np.bool_), np.zeros((4, 3), np.bool_))


@pytest.mark.parametrize("levels", [None, 16])
def test_best_dice_equals_brute_force(rng: np.random.Generator, levels: int | None) -> None:
    for score, truth in _maps(rng, 3, levels):
        found = best_dice(score, truth)
        assert found is not None
        assert found[0] == pytest.approx(_brute_best_dice(score, truth), abs=ROUNDING)
        assert dice(score >= found[1], truth) == pytest.approx(found[0], abs=ROUNDING)


def test_best_dice_is_undefined_without_a_defect() -> None:
    assert best_dice(np.ones((4, 4), np.float32), np.zeros((4, 4), np.bool_)) is None


def test_best_dice_treats_nan_as_the_lowest_score() -> None:
    score = np.array([[np.nan, 1.0, 2.0]], np.float32)
    found = best_dice(score, np.array([[False, False, True]]))
    assert found == (1.0, 2.0)


@pytest.mark.parametrize("levels", [None, 16])
def test_pixel_auroc_agrees_with_scikit_learn(rng: np.random.Generator, levels: int | None) -> None:
    maps = list(_maps(rng, 3, levels))
    counts = ScoreCounts()
    for score, truth in maps:
        counts.add(score, truth)
    scores = np.concatenate([score.ravel() for score, _ in maps])
    truths = np.concatenate([truth.ravel() for _, truth in maps])
    tolerance = ROUNDING if levels else BINNED
    assert counts.auroc() == pytest.approx(roc_auc_score(truths, scores), abs=tolerance)


def test_pixel_auroc_orders_negative_scores_and_both_zeros() -> None:
    counts = ScoreCounts()
    score = np.array([[-3.0, -1.0, -0.0, 0.0, 2.0]], np.float32)
    counts.add(score, np.array([[0, 0, 1, 0, 1]], np.bool_))
    # Pairs won: the zero beats -3 and -1 and ties with the other zero; 2 beats all three.
    assert counts.auroc() == pytest.approx((2.5 + 3) / 6)


def _brute_aupro(maps: list[tuple[NDArray[np.float32], NDArray[np.bool_]]], limit: float) -> float:
    """The definition, threshold by threshold."""
    levels = np.unique(np.concatenate([score.ravel() for score, _ in maps]))[::-1]
    curve = [(0.0, 0.0)]
    for level in levels:
        false = [np.count_nonzero((score >= level) & ~truth) for score, truth in maps]
        clean = [np.count_nonzero(~truth) for _, truth in maps]
        overlaps = []
        for score, truth in maps:
            count, labels = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8)
            overlaps += [float((score[labels == k] >= level).mean()) for k in range(1, count)]
        curve.append((sum(false) / sum(clean), float(np.mean(overlaps))))
    x, y = np.array(curve).T
    inside = x <= limit
    edge = np.interp(limit, x, y)
    return float(auc(np.append(x[inside], limit), np.append(y[inside], edge)) / limit)


@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
def test_aupro_equals_brute_force(rng: np.random.Generator, limit: float) -> None:
    maps = list(_maps(rng, 2, levels=16))
    counts = ScoreCounts()
    for score, truth in maps:
        counts.add(score, truth)
    assert counts.aupro(limit) == pytest.approx(_brute_aupro(maps, limit), abs=ROUNDING)


def test_aupro_of_one_region_is_the_partial_area_under_the_roc(rng: np.random.Generator) -> None:
    truth = np.zeros((30, 30), np.bool_)
    truth[8:15, 9:20] = True
    score = rng.normal(0, 1, truth.shape).astype(np.float32) + truth
    counts = ScoreCounts()
    counts.add(score, truth)
    fpr, tpr, _ = roc_curve(truth.ravel(), score.ravel(), drop_intermediate=False)
    kept = fpr <= 0.3
    edge = np.interp(0.3, fpr, tpr)
    partial = auc(np.append(fpr[kept], 0.3), np.append(tpr[kept], edge)) / 0.3
    assert counts.aupro() == pytest.approx(partial, abs=BINNED)


def test_image_auroc_agrees_with_scikit_learn_when_scores_tie(rng: np.random.Generator) -> None:
    normal = rng.integers(0, 6, 31).astype(np.float64)
    defective = rng.integers(2, 9, 17).astype(np.float64)
    truth = np.r_[np.zeros(31), np.ones(17)]
    expected = roc_auc_score(truth, np.r_[normal, defective])
    assert image_auroc(normal, defective) == pytest.approx(expected, abs=ROUNDING)
    assert image_auroc(normal, np.empty(0)) is None


def _judged(rng: np.random.Generator):
    for index, (score, truth) in enumerate(_maps(rng, 3)):
        verdict = "fail" if index else "pass"
        yield "dent", score, score > 0.35, truth, float(score.max()), verdict
    for index in range(4):
        score = rng.gamma(2.0, 0.1, (40, 57)).astype(np.float32)
        yield "good", score, score > 9, None, float(score.max()), "fail" if index == 0 else "pass"


def test_evaluate_fills_the_stated_layout(rng: np.random.Generator) -> None:
    items = list(_judged(rng))
    table = evaluate(iter(items))
    assert set(table) == {"overall", "per_category"}
    assert set(table["per_category"]) == {"dent", "good"}
    dents = [item for item in items if item[0] == "dent"]
    figures = table["per_category"]["dent"]
    bests = [_brute_best_dice(item[1], item[3]) for item in dents]
    assert figures["dice_best_per_image"] == pytest.approx(np.mean(bests))
    at_threshold = [dice(item[2], item[3]) for item in dents]
    assert figures["dice_at_threshold"] == pytest.approx(np.mean(at_threshold))
    assert figures["iou_at_threshold"] == pytest.approx(np.mean([iou(i[2], i[3]) for i in dents]))
    truths = np.concatenate([(np.zeros((40, 57)) if i[3] is None else i[3]).ravel() for i in items])
    scores = np.concatenate([item[1].ravel() for item in items])
    assert figures["pixel_auroc"] == pytest.approx(roc_auc_score(truths, scores), abs=BINNED)
    assert table["overall"]["false_reject_rate"] == 0.25
    assert table["overall"]["detection_rate"] == figures["detection_rate"] == 2 / 3
    assert table["per_category"]["good"]["detection_rate"] is None
    assert table["overall"]["images"] == 7
    assert figures["images"] == 3


def test_evaluate_leaves_undefined_figures_empty(rng: np.random.Generator) -> None:
    good = evaluate(item for item in _judged(rng) if item[0] == "good")
    assert good["per_category"]["good"]["false_reject_rate"] == 0.25
    for figures in (good["overall"], good["per_category"]["good"]):
        for name in (
            "dice_best_per_image",
            "dice_at_threshold",
            "pixel_auroc",
            "aupro",
            "image_auroc",
        ):
            assert figures[name] is None
    bad = evaluate(item for item in _judged(rng) if item[0] == "dent")
    assert bad["overall"]["image_auroc"] is None
    assert bad["overall"]["false_reject_rate"] is None
    assert bad["overall"]["pixel_auroc"] is not None
    nothing = evaluate(iter(()))
    assert nothing["per_category"] == {}
    assert nothing["overall"]["images"] == 0


def test_evaluate_counts_a_defect_without_truth_only_by_its_image(rng: np.random.Generator) -> None:
    items = [item for item in _judged(rng) if item[0] == "good"]
    score = rng.gamma(2.0, 0.1, (40, 57)).astype(np.float32)
    table = evaluate([*items, ("dent", score, score > 1, None, 99.0, "fail")])
    figures = table["per_category"]["dent"]
    assert figures["image_auroc"] == 1.0
    assert figures["images"] == 1
    assert figures["dice_at_threshold"] is None
    assert figures["pixel_auroc"] is None


def test_truth_is_found_in_the_mvtec_layout(tmp_path) -> None:
    folder = tmp_path / "truth" / "dent"
    folder.mkdir(parents=True)
    mask = np.zeros((6, 9), np.uint8)
    mask[2, 3] = 255
    cv2.imwrite(str(folder / "007_mask.png"), mask)
    image = tmp_path / "test" / "dent" / "007.jpg"
    assert find_truth(tmp_path / "truth", image) == folder / "007_mask.png"
    truth = read_truth(tmp_path / "truth", image)
    assert truth is not None
    np.testing.assert_array_equal(truth, mask > 0)
    assert read_truth(tmp_path / "truth", tmp_path / "test" / "good" / "1.png") is None


def test_truth_says_what_is_missing_or_broken(tmp_path) -> None:
    image = tmp_path / "test" / "dent" / "007.jpg"
    with pytest.raises(SourceError, match=r"no truth mask for .*007_mask\.png"):
        find_truth(tmp_path / "truth", image)
    broken = tmp_path / "truth" / "dent" / "007_mask.png"
    broken.parent.mkdir(parents=True)
    for content in (b"", b"not a picture"):
        broken.write_bytes(content)
        with pytest.raises(SourceError, match="cannot be decoded"):
            read_truth(tmp_path / "truth", image)
