"""The CUDA drivers of features' distances, emulated on the host, against the float64 reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_driver import EmulatedDriver

from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.reference.candidates import nearest_candidate, top_candidates
from unblemish.kernels.reference.mahalanobis import mahalanobis, mahalanobis_low_rank

GRID = (3, 2)  # fewer blocks than cells and items, so that both loops stride
# As for the CPU kernels: sums of c products in float32, in another order.
ROUNDING = 2.0**-23
PLACES, LENGTH = 5, 7

Launch = Callable[..., None]


@pytest.fixture(scope="module")
def launch(emulation: Callable[[str], Launch]) -> Launch:
    """launch('kernel', grid, *arguments) on the host."""
    return emulation("emulate_feature_terms.cpp")


class Cells:
    """Features of three items, their places, and outputs that are to be overwritten."""

    def __init__(self, channels: int, rng: np.random.Generator) -> None:
        self.f = rng.normal(size=(3, LENGTH, channels)).astype(np.float32)
        self.mean = rng.normal(size=(PLACES, channels)).astype(np.float32)
        self.cells = rng.integers(-1, PLACES, (3, LENGTH)).astype(np.int32)
        self.cells[0, :2] = -1, PLACES - 1
        self.scores = np.full((3, LENGTH), 7, np.float32)
        self.cotangent = np.full_like(self.f, 7)
        self.sizes = [ctypes.c_int(value) for value in self.f.shape]
        self.tolerance = 8 * channels * ROUNDING

    def judge(self, expected: tuple[Any, Any], counts: Any) -> None:
        size = np.abs(expected[1]).max(axis=2, keepdims=True) + 1e-6
        np.testing.assert_allclose(self.scores, expected[0], rtol=self.tolerance, atol=1e-5)
        assert np.abs((self.cotangent - expected[1]) / size).max() < 2 * self.tolerance
        assert not self.scores[~counts].any()
        assert not self.cotangent[~counts].any()


@pytest.mark.parametrize("channels", [1, 15, 16, 19, 70, 300])
def test_mahalanobis_driver_matches_reference(
    launch: Launch, rng: np.random.Generator, channels: int
) -> None:
    c = Cells(channels, rng)
    packed = channels * (channels + 1) // 2
    whitening = (rng.normal(size=(PLACES, packed)) / np.sqrt(channels)).astype(np.float32)
    arrays = (c.f, c.mean, whitening, c.cells)
    launch("mahalanobis", GRID, *arrays, c.scores, c.cotangent, *c.sizes)
    c.judge(mahalanobis(*arrays), c.cells >= 0)
    alone = np.full_like(c.scores, 7)
    launch("mahalanobis", (1, 1), *arrays, alone, None, *c.sizes)
    np.testing.assert_array_equal(alone, c.scores)  # any grid, with slopes or without


@pytest.mark.parametrize(("channels", "rank"), [(1, 1), (19, 3), (70, 16), (33, 100), (20, 300)])
def test_mahalanobis_low_rank_driver_matches_reference(
    launch: Launch, rng: np.random.Generator, channels: int, rank: int
) -> None:
    c = Cells(channels, rng)
    scale = 4 * np.sqrt(channels * rank)
    basis = (rng.normal(size=(PLACES, channels, rank)) / scale).astype(np.float32)
    inverse = rng.uniform(0.5, 2, PLACES).astype(np.float32)
    arrays = (c.f, c.mean, basis, inverse, c.cells)
    sizes = (*c.sizes, ctypes.c_int(rank))
    launch("mahalanobis_low_rank", GRID, *arrays, c.scores, c.cotangent, *sizes)
    c.tolerance = 8 * (channels + rank) * ROUNDING
    c.judge(mahalanobis_low_rank(*arrays), c.cells >= 0)
    alone = np.full_like(c.scores, 7)
    launch("mahalanobis_low_rank", (1, 1), *arrays, alone, None, *sizes)
    np.testing.assert_array_equal(alone, c.scores)


@pytest.mark.parametrize(
    ("items", "length", "grid"), [(3, 20, (8, 1)), (3, 2, (2, 3)), (9, 2, (2, 4)), (9, 8, (8, 1))]
)
def test_cells_come_before_items(
    make_driver: Callable[..., EmulatedDriver], items: int, length: int, grid: tuple[int, int]
) -> None:
    """Items of one place follow each other in a block where the cells alone fill the chip."""
    assert CudaKernels(driver=make_driver(multiprocessors=1))._blocks(items, length) == grid


def test_more_channels_than_there_is_room_for_give_nan(launch: Launch) -> None:
    channels = 2049
    f, cells = np.zeros((1, 1, channels), np.float32), np.zeros((1, 1), np.int32)
    statistics = np.zeros((1, channels * (channels + 1) // 2), np.float32)
    sizes = [ctypes.c_int(value) for value in f.shape]
    for kernel, more in [
        ("mahalanobis", [f, statistics]),
        ("mahalanobis_low_rank", [f, statistics, np.ones(1, np.float32)]),
    ]:
        scores = np.zeros((1, 1), np.float32)
        tail = [ctypes.c_int(1)] if "low" in kernel else []
        launch(kernel, (1, 1), f, *more, cells, scores, None, *sizes, *tail)
        assert np.isnan(scores).all()


@pytest.mark.parametrize("count", [1, 2, 16, 37])
@pytest.mark.parametrize("channels", [1, 19, 100])
def test_nearest_candidate_driver_matches_reference(
    launch: Launch, rng: np.random.Generator, channels: int, count: int
) -> None:
    c = Cells(channels, rng)
    bank = rng.normal(size=(40, channels)).astype(np.float32)
    candidates = rng.integers(0, 40, (3, LENGTH, count)).astype(np.int32)
    candidates[0, 1, count // 2 :] = -1
    candidates[1, 3, 0] = -1
    chosen = np.full((3, LENGTH), 7, np.int32)
    sizes = (ctypes.c_size_t(3 * LENGTH), ctypes.c_int(channels), ctypes.c_int(count))
    arrays = (c.f, bank, candidates)
    launch("nearest_candidate", GRID, *arrays, c.scores, c.cotangent, chosen, *sizes)
    expected = nearest_candidate(*arrays)
    np.testing.assert_array_equal(chosen, expected[2])
    c.judge(expected[:2], chosen >= 0)
    alone = np.full_like(c.scores, 7)
    launch("nearest_candidate", (1, 1), *arrays, alone, None, chosen, *sizes)
    np.testing.assert_array_equal(alone, c.scores)


def test_nearest_candidate_driver_takes_the_first_of_equals(launch: Launch) -> None:
    bank = np.zeros((40, 3), np.float32)
    bank[[5, 9, 30]] = 2
    bank[7] = np.nan
    f = np.full((3, 3), 1.5, np.float32)
    f[2] = np.nan
    order = np.arange(40)[::-1]
    candidates = np.array([order, np.roll(order, -33), order], np.int32)
    scores, chosen = np.empty(3, np.float32), np.empty(3, np.int32)
    sizes = (ctypes.c_size_t(3), ctypes.c_int(3), ctypes.c_int(40))
    launch("nearest_candidate", (2, 1), f, bank, candidates, scores, None, chosen, *sizes)
    # From 39 down; from 6 down, then on from 39; and where no distance is a number, the first.
    assert chosen.tolist() == [30, 5, 39]
    np.testing.assert_array_equal(scores, [0.75, 0.75, np.nan])


class Search:
    """The three kernels of a search, one after the other."""

    def __init__(self, launch: Launch, queries: Any, bank: Any, count: int, slices: int) -> None:
        many, rows = ctypes.c_size_t(len(queries)), ctypes.c_size_t(len(bank))
        channels, k = ctypes.c_int(queries.shape[1]), ctypes.c_size_t(count)
        self.norms = np.full(len(bank), np.nan, np.float32)
        value = np.full((slices, len(queries), count), np.nan, np.float32)
        ranked = np.full(value.shape, -7, np.int32)
        self.index = np.full((len(queries), count), -7, np.int32)
        self.distances = np.full(self.index.shape, np.nan, np.float32)
        launch("bank_norms", (3, 1), bank, self.norms, rows, channels)
        inputs = (queries, bank, self.norms, value, ranked)
        launch("rank_candidates", (2, slices), *inputs, many, rows, channels, k)
        sizes = (many, channels, k, ctypes.c_int(slices))
        inputs = (queries, bank, value, ranked, self.index, self.distances)
        launch("settle_candidates", (4, 1), *inputs, *sizes)


@pytest.mark.parametrize(
    ("queries", "rows", "channels", "count", "slices"),
    [(1, 1, 1, 1, 1), (3, 5, 2, 5, 1), (13, 33, 7, 4, 3), (150, 301, 19, 9, 2), (70, 700, 48, 1, 3),
     (5, 500, 16, 130, 4), (2, 64, 33, 64, 5), (3, 700, 3, 60, 9)],
)  # fmt: skip
def test_search_drivers_match_brute_force(
    launch: Launch,
    rng: np.random.Generator,
    queries: int,
    rows: int,
    channels: int,
    count: int,
    slices: int,
) -> None:
    q = rng.normal(size=(queries, channels)).astype(np.float32)
    bank = rng.normal(size=(rows, channels)).astype(np.float32)
    found = Search(launch, q, bank, count, slices)
    lengths = np.square(bank.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(found.norms, lengths, rtol=channels * ROUNDING)
    index, distances = top_candidates(q, bank, count)
    np.testing.assert_allclose(found.distances, distances, rtol=8 * channels * ROUNDING, atol=1e-5)
    assert (np.diff(found.distances, axis=1) >= 0).all()
    for row in found.index:
        assert len(set(row)) == count
    # Ranks may differ where two distances are closer than the rounding of ||m||^2 - 2 q m.
    each = np.square(q[:, None].astype(np.float64) - bank[found.index]).sum(axis=2)
    np.testing.assert_allclose(each, distances, atol=64 * channels * ROUNDING)
    assert (found.index == index).mean() > 0.99


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_search_drivers_put_the_lower_of_equal_rows_first(launch: Launch, slices: int) -> None:
    rng = np.random.default_rng(1)
    q = rng.integers(-2, 3, (9, 5)).astype(np.float32)
    bank = rng.integers(-2, 3, (190, 5)).astype(np.float32)
    bank[150:] = bank[:40]
    found = Search(launch, q, bank, 40, slices)
    index, distances = top_candidates(q, bank, 40)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.distances, distances)
