"""The race: the best option wins, the hopeless are not tried on more images than they need."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.calibration.race import race


@pytest.mark.parametrize("gap", [0.02, 0.3])
def test_the_best_option_wins_and_the_hopeless_stop_early(gap: float) -> None:
    noise = np.random.default_rng(2).normal(0, 0.05, (3, 64))
    seen: dict[int, int] = {}

    def dices(option: int, count: int) -> np.ndarray:
        seen[option] = max(seen.get(option, 0), count)
        return 0.5 + (gap if option == 1 else 0) - 0.4 * (option == 2) + noise[option, :count]

    assert race([0, 1, 2], dices, 64) == 1
    assert seen[2] == 8
    assert (seen[1] == 8) is (gap == 0.3)


def test_one_option_and_few_images_are_enough() -> None:
    assert race(["only"], lambda option, count: np.zeros(count), 3) == "only"
    assert race([1, 2], lambda option, count: np.full(count, float(option)), 1) == 2


def test_equal_options_end_with_the_first() -> None:
    assert race([3, 2, 1], lambda option, count: np.ones(count), 20) == 3
