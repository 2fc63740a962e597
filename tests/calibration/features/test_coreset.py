"""The greedy k-centre selection against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.calibration.features.coreset import coreset
from unblemish.errors import ConfigError


def brute(features: np.ndarray, first: int, count: int) -> list[int]:
    rows, chosen = features.astype(np.float64), [first]
    while len(chosen) < count:
        distance = np.square(rows[:, None] - rows[chosen][None]).sum(2).min(1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return chosen


@pytest.mark.parametrize(("total", "channels", "count"), [(1, 1, 1), (19, 3, 19), (300, 17, 40)])
def test_coreset_is_the_brute_force_choice(total: int, channels: int, count: int) -> None:
    features = np.random.default_rng(3).normal(size=(total, channels)).astype(np.float32)
    chosen = coreset(features, count, seed=5, project=None)
    assert chosen.tolist() == brute(features, int(chosen[0]), count)


def test_coreset_is_exact_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    import unblemish.calibration.features.coreset as module

    features = np.random.default_rng(4).normal(size=(200, 8)).astype(np.float32)
    whole = coreset(features, 30, seed=1)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert coreset(features, 30, seed=1).tolist() == whole.tolist()


def test_coreset_takes_no_row_twice_when_rows_repeat() -> None:
    features = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    assert sorted(coreset(features, 12, seed=0).tolist()) == list(range(12))
    first_four = coreset(features, 4, seed=0)
    assert len({tuple(features[i]) for i in first_four}) == 4


def test_coreset_covers_nearly_as_well_after_projection() -> None:
    features = np.random.default_rng(0).normal(size=(500, 256)).astype(np.float32)

    def radius(rows: np.ndarray) -> float:
        return float(np.square(features[:, None] - features[rows][None]).sum(2).min(1).max())

    assert radius(coreset(features, 50, seed=0)) < 1.1 * radius(
        coreset(features, 50, seed=0, project=None)
    )


def test_coreset_reports_and_refuses() -> None:
    calls: list[tuple[str, int, int]] = []
    features = np.ones((5, 2), np.float32)
    coreset(features, 3, seed=0, progress=lambda *a: calls.append(a))
    assert calls[-1] == ("coreset", 3, 3)
    for count in (0, 6):
        with pytest.raises(ConfigError, match="coreset"):
            coreset(features, count, seed=0)
