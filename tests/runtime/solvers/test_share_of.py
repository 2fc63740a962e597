"""Time shared between pieces of work."""

from __future__ import annotations

from unblemish.runtime.solvers.loop import share_of


def test_share_of_gives_every_piece_the_same_time() -> None:
    now, deadline = 10.0, 16.0
    for left in (3, 2, 1):
        until = share_of(deadline, left, lambda now=now: now)
        assert until == now + 2.0
        now = until
    assert now == deadline


def test_share_of_hands_on_what_a_piece_leaves() -> None:
    assert share_of(16.0, 2, lambda: 10.0) == 13.0
    assert share_of(16.0, 1, lambda: 10.5) == 16.0


def test_share_of_no_deadline_is_none() -> None:
    assert share_of(None, 3, lambda: 0.0) is None
