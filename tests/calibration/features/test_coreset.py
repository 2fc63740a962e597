"""The coreset: its projection, turning and refusals. The choice itself: tests/kernels."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.calibration.features import coreset as module
from unblemish.calibration.features.coreset import coreset
from unblemish.errors import ConfigError


def brute(features: np.ndarray, first: int, count: int) -> list[int]:
    rows, chosen = features.astype(np.float64), [first]
    while len(chosen) < count:
        distance = np.square(rows[:, None] - rows[chosen][None]).sum(2).min(1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return chosen


@pytest.mark.parametrize("middle", [0, 50])
@pytest.mark.parametrize(
    ("total", "channels", "count"), [(1, 1, 1), (19, 3, 19), (300, 16, 40), (300, 17, 40)]
)
def test_coreset_is_the_brute_force_choice(
    total: int, channels: int, count: int, middle: float
) -> None:
    features = np.random.default_rng(3).normal(middle, 1, (total, channels)).astype(np.float32)
    chosen = coreset(features, count, seed=5, project=None)
    assert chosen.tolist() == brute(features, int(chosen[0]), count)


def test_coreset_is_the_brute_force_choice_among_projected_rows() -> None:
    features = np.random.default_rng(6).normal(size=(400, 50)).astype(np.float32)
    chosen = coreset(features, 60, seed=8, project=20)
    # The projection of algorithm 1 without the turn, which keeps distances.
    matrix = np.random.default_rng(8).standard_normal((50, 20)).astype(np.float32) / np.sqrt(20)
    assert chosen.tolist() == brute(features @ matrix, int(chosen[0]), 60)


def test_rows_are_turned_so_that_the_leading_numbers_differ_most() -> None:
    rng = np.random.default_rng(7)
    features = (rng.normal(size=(300, 40)) * np.linspace(0.1, 3, 40) + 7).astype(np.float32)
    rows = module._projected(features, None, rng)
    assert rows.shape == (300, 40)
    assert (np.diff(rows.var(axis=0)) < 0).all()
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-4)
    for a, b in [(0, 1), (5, 299)]:
        assert np.square(rows[a] - rows[b]).sum() == pytest.approx(
            np.square(features[a] - features[b]).sum(), rel=1e-5
        )


def test_coreset_is_exact_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(4).normal(size=(200, 20)).astype(np.float32)
    whole = coreset(features, 30, seed=1)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert coreset(features, 30, seed=1).tolist() == whole.tolist()


def test_coreset_covers_nearly_as_well_after_projection() -> None:
    features = np.random.default_rng(0).normal(size=(500, 256)).astype(np.float32)

    def radius(rows: np.ndarray) -> float:
        return float(np.square(features[:, None] - features[rows][None]).sum(2).min(1).max())

    assert radius(coreset(features, 50, seed=0)) < 1.1 * radius(
        coreset(features, 50, seed=0, project=None)
    )


def test_coreset_reports() -> None:
    calls: list[tuple[str, int, int]] = []
    for count in (1, 3, 200):
        features = np.random.default_rng(count).normal(size=(300, 2)).astype(np.float32)
        coreset(features, count, seed=0, progress=lambda *a: calls.append(a))
        assert calls[-1] == ("coreset", count, count)
    assert len(calls) == 1 + 1 + 4


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"1 to 5 of them, not {count}"):
        coreset(np.ones((5, 2), np.float32), count, seed=0)


@pytest.mark.parametrize("project", [0, -1])
def test_a_projection_to_nothing_is_refused(project: int) -> None:
    with pytest.raises(ConfigError, match=f"not {project}"):
        coreset(np.ones((5, 2), np.float32), 2, seed=0, project=project)


@pytest.mark.parametrize("channels", [3, 30])
@pytest.mark.parametrize("project", [None, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(
    channels: int, project: int | None, bad: float
) -> None:
    features = np.ones((50, channels), np.float32)
    features[4, 1] = bad
    with pytest.raises(ConfigError, match="NaN or infinite"):
        coreset(features, 2, seed=0, project=project)
