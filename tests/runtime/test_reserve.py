"""What is left of a deadline for the part after the search."""

from __future__ import annotations

from unblemish.runtime.reserve import Reserve


def test_reserve_forgets_one_hiccup_at_once() -> None:
    reserve = Reserve()
    for seconds in (0.010, 0.011, 0.5, 0.010):
        reserve.add(100, seconds)
    assert reserve.expected(100) == 0.011


def test_reserve_follows_when_it_gets_slower_for_good() -> None:
    reserve = Reserve()
    for seconds in (0.01, 0.01, 0.01, 0.05, 0.06):
        reserve.add(100, seconds)
    assert reserve.expected(100) == 0.05


def test_reserve_keeps_sizes_apart() -> None:
    reserve = Reserve()
    reserve.add(5_000_000, 0.1)
    assert reserve.expected(100) == 0.0
    assert reserve.expected(5_000_000) == 0.1


def test_reserve_stays_small() -> None:
    reserve = Reserve()
    for pixels in range(1000):
        reserve.add(pixels, 1.0)
    assert reserve.expected(999) == 1.0
    assert reserve.expected(0) == 0.0
