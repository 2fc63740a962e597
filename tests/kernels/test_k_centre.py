"""The greedy k-centre choice: every implementation against plain brute force in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unblemish.errors import ConfigError, ShapeError
from unblemish.kernels import k_centre as module
from unblemish.kernels.k_centre import CompiledKCentre, KCentre, NumpyKCentre, k_centre

Make = Callable[[np.ndarray, int], KCentre]

# Of a squared distance: d roundings of 2^-24 at most where differences are squared, and d is 100.
# NumPy takes ||a||^2 - 2 a b + ||b||^2, whose terms here are at most a hundred times as large.
ROUNDING = {"compiled": 1e-5, "numpy": 1e-3}


def _compiled(threads: int, instruction_set: str | None = None, **settings: int) -> Make:
    pytest.importorskip("unblemish.kernels._cpu", reason="no C++ compiler at install")
    from unblemish.kernels.cpu import instruction_sets

    if instruction_set is not None and instruction_set not in instruction_sets():
        pytest.skip(f"this processor or build has no {instruction_set}")
    return lambda rows, first: CompiledKCentre(
        rows, first, threads, instruction_set=instruction_set, **settings
    )


_MAKERS: dict[str, Callable[[], Make]] = {
    "compiled": lambda: _compiled(1),
    "compiled-3-threads": lambda: _compiled(3),
    "compiled-pool-of-9": lambda: _compiled(1, pool=9),
    "compiled-pool-of-1": lambda: _compiled(3, pool=1),
    "compiled-baseline": lambda: _compiled(1, "baseline"),
    "compiled-avx2": lambda: _compiled(1, "avx2"),
    "numpy": lambda: NumpyKCentre,
}


@pytest.fixture(params=list(_MAKERS))
def make(request: pytest.FixtureRequest) -> Make:
    """Each implementation in turn."""
    return _MAKERS[request.param]()


@pytest.fixture
def rounding(request: pytest.FixtureRequest) -> float:
    kind: str = request.node.callspec.params["make"]
    return ROUNDING[kind.split("-")[0]]


def brute(rows: np.ndarray, first: int, count: int) -> list[int]:
    """The `count` rows after `first`, by the definition."""
    exact = rows.astype(np.float64)
    nearest = np.full(len(rows), np.inf)
    chosen = [first]
    for _ in range(count):
        distance = np.square(exact - exact[chosen[-1]]).sum(axis=1)
        nearest = np.minimum(nearest, distance)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen[1:]


def whole(shape: tuple[int, int], most: int, seed: int = 0) -> np.ndarray:
    """Whole numbers, whose squared distances are exact in float32; small ones tie and repeat."""
    return np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.float32)


@pytest.mark.parametrize("most", [1, 3, 60])
@pytest.mark.parametrize(
    ("total", "width"),
    [(1, 1), (2, 3), (19, 16), (99, 1), (99, 15), (257, 17), (301, 2), (300, 33), (200, 48),
     (150, 100)],
)  # fmt: skip
def test_choice_is_that_of_brute_force_down_to_the_last_row(
    make: Make, total: int, width: int, most: int
) -> None:
    rows = whole((total, width), most)
    first = total // 2
    chosen = make(rows, first).choose(total - 1)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == brute(rows, first, total - 1)


def test_choice_is_that_of_brute_force_when_rows_lie_in_clusters(make: Make) -> None:
    """Where few rows are farthest, and most can be left for long; with leading numbers and not."""
    rng = np.random.default_rng(1)
    places = rng.integers(-400, 401, (12, 40))
    rows = (places[rng.integers(0, 12, 3000)] + rng.integers(-3, 4, (3000, 40))).astype(np.float32)
    assert make(rows, 7).choose(250).tolist() == brute(rows, 7, 250)
    rows[:, :20] = 5
    assert make(rows, 7).choose(250).tolist() == brute(rows, 7, 250)


def test_choice_is_that_of_brute_force_when_threads_share_the_rows(make: Make) -> None:
    """Rows enough for several threads, and for the farthest to be looked for in a sample."""
    rows = whole((70_000, 16), 3)
    assert make(rows, 69_999).choose(12).tolist() == brute(rows, 69_999, 12)


@pytest.mark.parametrize("pool", [4096, 300])
@pytest.mark.parametrize("kind", ["even", "outliers", "ties"])
def test_choice_is_that_of_brute_force_when_most_rows_are_left_as_they_are(
    kind: str, pool: int
) -> None:
    rng = np.random.default_rng(8)
    rows = whole((20_000, 6), 2 if kind == "ties" else 100)
    if kind == "outliers":
        rows[rng.integers(0, 20_000, 18_000)] //= 20
    chosen = _compiled(2, pool=pool)(rows, 11).choose(1500)
    assert chosen.tolist() == brute(rows, 11, 1500)


@pytest.mark.parametrize("pool", [4096, 50])
def test_equal_rows_are_taken_in_order_when_they_fill_the_pool(pool: int) -> None:
    rows = np.full((9_000, 3), 2, np.float32)
    chosen = _compiled(1, pool=pool)(rows, 5000).choose(8_999)
    np.testing.assert_array_equal(chosen, np.delete(np.arange(9_000), 5000))


@pytest.mark.parametrize("total", [1, 2, 17, 5000])
def test_all_rows_equal_are_taken_in_order(make: Make, total: int) -> None:
    rows = np.full((total, 5), 3, np.float32)
    count = min(total - 1, 40)
    expected = [row for row in range(total) if row != total // 2][:count]
    assert make(rows, total // 2).choose(count).tolist() == expected


def test_every_different_row_is_taken_before_a_repeated_one(make: Make) -> None:
    rows = np.repeat(whole((30, 20), 9), 4, axis=0)
    chosen = make(rows, 5).choose(119).tolist()
    assert sorted([5, *chosen]) == list(range(120))
    assert len({row // 4 for row in [5, *chosen[:29]]}) == 30
    assert chosen[29:] == [row for row in range(120) if row not in {5, *chosen[:29]}]


@pytest.mark.parametrize("parts", [[1] * 60, [0, 7, 0, 53], [59, 1]])
def test_several_calls_give_what_one_gives(make: Make, parts: list[int]) -> None:
    rows = np.random.default_rng(2).normal(size=(400, 23)).astype(np.float32)
    search = make(rows, 3)
    found = np.concatenate([search.choose(count) for count in parts])
    assert found.tolist() == make(rows, 3).choose(60).tolist()


@pytest.mark.parametrize("scale", [1e-22, 1e-20, 1.0, 1e17])
@pytest.mark.parametrize("width", [5, 100])
def test_rows_of_any_size_are_chosen_greedily_but_for_rounding(
    make: Make, rounding: float, width: int, scale: float
) -> None:
    """Squares of the smallest underflow: differences below 2^-126 a number count as none."""
    rows = (np.random.default_rng(4).normal(size=(500, width)) * scale).astype(np.float32)
    chosen = make(rows, 0).choose(200).tolist()
    assert len({0, *chosen}) == 201
    exact, nearest, last = rows.astype(np.float64), np.full(500, np.inf), 0
    for row in chosen:
        nearest = np.minimum(nearest, np.square(exact - exact[last]).sum(axis=1))
        assert nearest[row] >= nearest.max() * (1 - rounding) - 4 * width * 2.0**-126
        last = row


def test_choice_does_not_depend_on_threads() -> None:
    rows = np.random.default_rng(5).normal(size=(60_000, 24)).astype(np.float32)
    alone = _compiled(1)(rows, 1).choose(40)
    np.testing.assert_array_equal(_compiled(4)(rows, 1).choose(40), alone)


def test_rows_stay_alive_while_they_are_searched() -> None:
    search = _compiled(1)(whole((5000, 16), 60), 0)
    np.empty((5000, 16), np.float32)[...] = np.nan  # likely where freed rows would have been
    assert search.choose(9).tolist() == brute(whole((5000, 16), 60), 0, 9)


def test_numpy_choice_is_exact_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = whole((200, 8), 3)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert NumpyKCentre(rows, 9).choose(199).tolist() == brute(rows, 9, 199)


def test_more_rows_than_are_left_are_refused(make: Make) -> None:
    search = make(whole((10, 3), 5), 0)
    search.choose(4)
    for wanted in (6, -1):
        with pytest.raises(ConfigError, match=f"5 rows are left; {wanted} were asked for"):
            search.choose(wanted)
    assert len(search.choose(5)) == 5  # a refusal costs nothing
    with pytest.raises(ConfigError, match="0 rows are left"):
        search.choose(1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((4, 3)), "float64"),
        (np.zeros((4, 3), np.float16), "float16"),
        (np.zeros(4, np.float32), r"\(4,\)"),
        (np.zeros((0, 3), np.float32), r"\(0, 3\)"),
        (np.zeros((4, 0), np.float32), r"\(4, 0\)"),
        (np.zeros((3, 4), np.float32).T, "ascontiguousarray"),
        (np.zeros((8, 3), np.float32)[::2], "ascontiguousarray"),
    ],
)
def test_rows_of_another_form_are_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        k_centre(rows, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, -1])
def test_values_without_a_distance_are_refused(bad: float, where: int) -> None:
    rows = whole((9000, 3), 5)
    rows[where, 2] = bad
    with pytest.raises(ConfigError, match="NaN or infinite"):
        k_centre(rows, 0)


def test_values_whose_distances_overflow_are_refused() -> None:
    rows = np.full((3, 4), 2.3e18, np.float32)
    rows[0] *= -1
    assert k_centre(rows, 1).choose(2).tolist() == [0, 2]
    with pytest.raises(ConfigError, match=r"up to 2.4e\+18.*may reach 2.3e\+18"):
        k_centre(rows * np.float32(1.05), 0)


@pytest.mark.parametrize("first", [-1, 4])
def test_a_first_row_that_is_not_there_is_refused(first: int) -> None:
    with pytest.raises(ConfigError, match=f"no row {first} of 4"):
        k_centre(np.zeros((4, 2), np.float32), first)


@pytest.mark.parametrize("threads", [0, -2])
def test_fewer_than_one_thread_is_refused(threads: int) -> None:
    with pytest.raises(ConfigError, match=f"threads={threads}"):
        k_centre(np.zeros((4, 2), np.float32), 0, threads)


def test_an_unknown_instruction_set_is_refused() -> None:
    _compiled(1)
    with pytest.raises(ConfigError, match="instruction_set='sse9'"):
        CompiledKCentre(np.zeros((4, 16), np.float32), 0, 1, instruction_set="sse9")


def test_without_the_compiled_kernels_numpy_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise ImportError

    monkeypatch.setattr(module, "CompiledKCentre", missing)
    assert isinstance(k_centre(np.zeros((4, 2), np.float32), 0), NumpyKCentre)
