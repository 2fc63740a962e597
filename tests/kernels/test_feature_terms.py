"""Distances of features: every implementation against float64, autograd and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ConfigError, ShapeError

# Sums of c products in float32, taken in another order: c roundings of 2^-24 at the very most, and
# the square of a sum has twice its relative error.
ROUNDING = 2.0**-23
# Channels around the widths of vectors (4, 8, 16) and of groups of rows (4); 70 is no multiple.
CHANNELS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 19, 31, 33, 48, 70, 100]
PLACES = 9


def gaussians(channels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mean = rng.normal(size=(PLACES, channels)).astype(np.float32)
    packed = channels * (channels + 1) // 2
    return mean, (rng.normal(size=(PLACES, packed)) / np.sqrt(channels)).astype(np.float32)


def features(channels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    f = rng.normal(size=(2, 13, channels)).astype(np.float32)
    cells = rng.integers(-1, PLACES, (2, 13)).astype(np.int32)
    cells[0, :2] = -1, PLACES - 1  # the last place ends the statistics
    return f, cells


def judge(run: Any, expected: tuple[np.ndarray, np.ndarray], counts: np.ndarray, c: int) -> None:
    """Scores and cotangent of `run`, with and without the latter, against float64."""
    shape = expected[1].shape
    scores, cotangent = np.full(shape[:2], 7, np.float32), np.full(shape, 7, np.float32)
    run(scores, cotangent)
    size = np.abs(expected[1]).max(axis=2, keepdims=True) + 1e-6
    np.testing.assert_allclose(scores, expected[0], rtol=8 * c * ROUNDING, atol=1e-5)
    assert np.abs((cotangent - expected[1]) / size).max() < 16 * c * ROUNDING
    assert not scores[~counts].any()
    assert not cotangent[~counts].any()
    alone = np.full(shape[:2], 7, np.float32)
    run(alone, None)
    np.testing.assert_allclose(alone, scores, rtol=8 * c * ROUNDING, atol=1e-6)


@pytest.mark.parametrize("channels", CHANNELS)
def test_mahalanobis_matches_reference(
    kernels: Any, rng: np.random.Generator, channels: int
) -> None:
    from unblemish.kernels.reference.mahalanobis import mahalanobis

    mean, whitening = gaussians(channels, rng)
    f, cells = features(channels, rng)

    def run(scores: Any, cotangent: Any) -> None:
        kernels.mahalanobis(f, mean, whitening, cells, scores=scores, cotangent=cotangent)

    judge(run, mahalanobis(f, mean, whitening, cells), cells >= 0, channels)


@pytest.mark.parametrize("rank", [1, 3, 16, 21])
@pytest.mark.parametrize("channels", [1, 5, 16, 19, 70])
def test_mahalanobis_low_rank_matches_reference(
    kernels: Any, rng: np.random.Generator, channels: int, rank: int
) -> None:
    from unblemish.kernels.reference.mahalanobis import mahalanobis_low_rank

    mean, _ = gaussians(channels, rng)
    f, cells = features(channels, rng)
    basis = (rng.normal(size=(PLACES, channels, rank)) / np.sqrt(channels * rank) / 4).astype(
        np.float32
    )
    inverse = rng.uniform(0.5, 2, PLACES).astype(np.float32)

    def run(scores: Any, cotangent: Any) -> None:
        kernels.mahalanobis_low_rank(
            f, mean, basis, inverse, cells, scores=scores, cotangent=cotangent
        )

    expected = mahalanobis_low_rank(f, mean, basis, inverse, cells)
    judge(run, expected, cells >= 0, channels + rank)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("channels", [1, 5, 16, 33, 100, 200])
def test_nearest_candidate_matches_reference(
    kernels: Any, rng: np.random.Generator, channels: int, count: int
) -> None:
    from unblemish.kernels.reference.candidates import nearest_candidate

    f, _ = features(channels, rng)
    bank = rng.normal(size=(40, channels)).astype(np.float32)
    candidates = rng.integers(0, 40, (2, 13, count)).astype(np.int32)
    candidates[0, 1, count // 2 :] = -1
    candidates[1, 3, 0] = -1
    expected = nearest_candidate(f, bank, candidates)
    chosen = np.full((2, 13), 7, np.int32)

    def run(scores: Any, cotangent: Any) -> None:
        kernels.nearest_candidate(
            f, bank, candidates, scores=scores, cotangent=cotangent, chosen=chosen
        )

    judge(run, expected[:2], expected[2] >= 0, channels)
    np.testing.assert_array_equal(chosen, expected[2])


def test_nearest_candidate_takes_the_first_of_equals(kernels: Any) -> None:
    bank = np.array([[1.0], [3.0], [1.0]], np.float32)
    f = np.full((1, 1, 1), 2, np.float32)
    scores, cotangent, chosen = (
        np.empty((1, 1), "f"),
        np.empty((1, 1, 1), "f"),
        np.empty((1, 1), "i"),
    )
    kernels.nearest_candidate(
        f, bank, np.array([[[1, 2, 0]]], "i"), scores=scores, cotangent=cotangent, chosen=chosen
    )
    assert (scores.item(), cotangent.item(), chosen.item()) == (1, -2, 1)


@pytest.mark.parametrize(
    ("queries", "rows", "channels", "count"),
    [(1, 1, 1, 1), (3, 5, 2, 5), (13, 33, 7, 4), (50, 301, 19, 50), (200, 2500, 33, 3),
     (300, 700, 48, 1), (7, 4200, 16, 60)],
)  # fmt: skip
@pytest.mark.parametrize("given", [False, True])
def test_top_candidates_match_brute_force(
    kernels: Any,
    rng: np.random.Generator,
    queries: int,
    rows: int,
    channels: int,
    count: int,
    given: bool,
) -> None:
    from unblemish.kernels.reference.candidates import top_candidates

    q = rng.normal(size=(queries, channels)).astype(np.float32)
    bank = rng.normal(size=(rows, channels)).astype(np.float32)
    index, distances = top_candidates(q, bank, count)
    norms = np.square(bank).sum(axis=1) if given else None
    found, near = np.full_like(index, -7), np.full(index.shape, -7, np.float32)
    kernels.top_candidates(q, bank, index=found, distances=near, norms=norms)
    np.testing.assert_allclose(near, distances, rtol=8 * channels * ROUNDING, atol=1e-5)
    assert (np.diff(near, axis=1) >= 0).all()
    for row in range(queries):
        assert len(set(found[row])) == count
    # Ranks may differ where two distances are closer than the rounding of ||m||^2 - 2 q m.
    each = np.square(q[:, None].astype(np.float64) - bank[found]).sum(axis=2)
    np.testing.assert_allclose(each, distances, atol=64 * channels * ROUNDING)
    assert (found == index).mean() > 0.99


def test_top_candidates_put_the_lower_of_equal_rows_first(kernels: Any) -> None:
    bank = np.tile(np.eye(3, dtype=np.float32), (30, 1))
    found, near = np.empty((2, 4), np.int32), np.empty((2, 4), np.float32)
    kernels.top_candidates(
        np.array([[2, 0, 0], [0, 0, 1]], np.float32), bank, index=found, distances=near
    )
    if kernels.name != "numpy":  # there a partition picks among equals
        np.testing.assert_array_equal(found, [[0, 3, 6, 9], [2, 5, 8, 11]])
    np.testing.assert_array_equal(near, [[1] * 4, [0] * 4])


@pytest.mark.parametrize("operation", ["full", "low rank", "nearest"])
def test_slopes_are_those_of_autograd(
    kernels: Any, rng: np.random.Generator, operation: str
) -> None:
    torch = pytest.importorskip("torch")
    c = 23
    mean, whitening = gaussians(c, rng)
    f, cells = features(c, rng)
    cells = np.maximum(cells, 0)
    scores, cotangent = np.empty(cells.shape, np.float32), np.empty_like(f)
    t = torch.tensor(f, dtype=torch.float64, requires_grad=True)
    d = t - torch.tensor(mean[cells], dtype=torch.float64)
    if operation == "full":
        w = np.zeros((PLACES, c, c))
        rows, columns = np.tril_indices(c)
        w[:, rows, columns] = whitening
        loss = torch.einsum("blij,blj->bli", torch.tensor(w[cells]), d).square().sum()
        kernels.mahalanobis(f, mean, whitening, cells, scores=scores, cotangent=cotangent)
    elif operation == "low rank":
        basis = (rng.normal(size=(PLACES, c, 4)) / 8).astype(np.float32)
        inverse = rng.uniform(0.5, 2, PLACES).astype(np.float32)
        b, p = (torch.tensor(a[cells], dtype=torch.float64) for a in (basis, inverse))
        along = torch.einsum("blcr,blc->blr", b, d).square().sum(2)
        loss = (p * (d.square().sum(2) - along)).sum()
        kernels.mahalanobis_low_rank(
            f, mean, basis, inverse, cells, scores=scores, cotangent=cotangent
        )
    else:
        bank = rng.normal(size=(50, c)).astype(np.float32)
        listed = rng.integers(0, 50, (*cells.shape, 9)).astype(np.int32)
        chosen = np.empty(cells.shape, np.int32)
        each = (t[:, :, None] - torch.tensor(bank[listed], dtype=torch.float64)).square().sum(3)
        loss = each.min(2).values.sum()
        kernels.nearest_candidate(
            f, bank, listed, scores=scores, cotangent=cotangent, chosen=chosen
        )
    (slope,) = torch.autograd.grad(loss, t)
    assert abs(float(scores.sum(dtype=np.float64)) / float(loss.detach()) - 1) < 1e-5
    np.testing.assert_allclose(cotangent, slope.numpy(), atol=1e-4 * float(slope.abs().max()))


def test_a_bad_feature_spoils_its_own_cell_alone(kernels: Any, rng: np.random.Generator) -> None:
    mean, whitening = gaussians(19, rng)
    f, cells = features(19, rng)
    cells = np.maximum(cells, 0)
    f[1, 4, 18] = np.nan
    bank = rng.normal(size=(20, 19)).astype(np.float32)
    listed = rng.integers(0, 20, (*cells.shape, 3)).astype(np.int32)
    scores, cotangent = np.empty(cells.shape, np.float32), np.empty_like(f)
    chosen = np.empty(cells.shape, np.int32)
    kernels.mahalanobis(f, mean, whitening, cells, scores=scores, cotangent=cotangent)
    assert np.argwhere(~np.isfinite(scores)).tolist() == [[1, 4]]
    kernels.nearest_candidate(f, bank, listed, scores=scores, cotangent=cotangent, chosen=chosen)
    assert np.argwhere(~np.isfinite(scores)).tolist() == [[1, 4]]


def _arguments() -> dict[str, dict[str, Any]]:
    f, cells = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.int32)
    mean, bank = np.zeros((5, 4), np.float32), np.zeros((6, 4), np.float32)
    scores, cotangent = np.zeros((2, 3), np.float32), np.zeros_like(f)
    outputs = {"scores": scores, "cotangent": cotangent}
    return {
        "mahalanobis": {
            "f": f, "mean": mean, "whitening": np.zeros((5, 10), np.float32), "cells": cells,
            **outputs,
        },
        "mahalanobis_low_rank": {
            "f": f, "mean": mean, "basis": np.zeros((5, 4, 2), np.float32),
            "inverse_variance": np.ones(5, np.float32), "cells": cells, **outputs,
        },
        "top_candidates": {
            "queries": f[0], "bank": bank, "index": np.zeros((3, 2), np.int32),
            "distances": np.zeros((3, 2), np.float32), "norms": None,
        },
        "nearest_candidate": {
            "f": f, "bank": bank, "candidates": np.zeros((2, 3, 2), np.int32),
            "chosen": np.zeros((2, 3), np.int32), **outputs,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "changes", "error", "message"),
    [
        ("mahalanobis", {"f": np.zeros((2, 4), "f")}, ShapeError, r"f must be \(items, cells"),
        ("mahalanobis", {"whitening": np.zeros((5, 16), "f")}, ShapeError, r"\(5, 10\), found"),
        ("mahalanobis", {"cells": np.zeros((2, 3), "q")}, ShapeError, "cells must be int32"),
        ("mahalanobis", {"cells": np.full((2, 3), 5, "i")}, ConfigError, "5, but there are 5 pl"),
        ("mahalanobis", {"cotangent": np.zeros((2, 3, 5), "f")}, ShapeError, "cotangent must have"),
        ("mahalanobis", {"mean": np.zeros((5, 3), "f")}, ShapeError, r"mean must have .*\(5, 4\)"),
        ("mahalanobis_low_rank", {"basis": np.zeros((5, 3, 2), "f")}, ShapeError, "basis must"),
        ("mahalanobis_low_rank", {"inverse_variance": np.ones(4, "f")}, ShapeError, r"\(5,\)"),
        ("top_candidates", {"bank": np.zeros((6, 3), "f")}, ShapeError, "bank must have"),
        ("top_candidates", {"norms": np.zeros(5, "f")}, ShapeError, "norms must have"),
        (
            "top_candidates",
            {"index": np.zeros((3, 7), "i"), "distances": np.zeros((3, 7), "f")},
            ConfigError,
            "k must be 1 to 6",
        ),
        ("top_candidates", {"distances": np.zeros((3, 1), "f")}, ShapeError, "distances must"),
        ("nearest_candidate", {"candidates": np.full((2, 3, 2), 6, "i")}, ConfigError, "6 rows"),
        ("nearest_candidate", {"chosen": np.zeros((2, 2), "i")}, ShapeError, "chosen must have"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    kernels: Any, operation: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(kernels, operation)(**{**_arguments()[operation], **changes})


def test_outputs_in_shared_memory_are_refused(kernels: Any) -> None:
    arguments = _arguments()["mahalanobis"]
    with pytest.raises(ShapeError, match="cotangent is written to and shares memory with f"):
        kernels.mahalanobis(**{**arguments, "cotangent": arguments["f"]})
