"""Scores of CFLOW-AD against torch in float64, for whole maps, for some cells and for crops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from unblemish.errors import ShapeError
from unblemish.runtime.backends.onnxruntime import OrtBackend
from unblemish.runtime.detectors.cflow import Cflow, flow_maps

ROWS, COLUMNS = 8, 12  # of the finest cells
SHAPES = ((6, 4), (5, 8), (4, 16))  # channels and stride of every map: 1, 2 and 4 cells a side
CHANNELS = sum(channels for channels, _ in SHAPES)
PLACES = sum((ROWS * 4 // stride) * (COLUMNS * 4 // stride) for _, stride in SHAPES)
TYPICAL = np.random.default_rng(9).uniform(-2, 0, PLACES).astype(np.float32)
CLOSE = 1e-3  # float32 through three couplings, whose scales reach exp(5)


@pytest.fixture
def flows(make_flow: Callable[..., Any]) -> list[Any]:
    grids = [(ROWS * 4 // stride, COLUMNS * 4 // stride) for _, stride in SHAPES]
    return [make_flow(c, grid, seed=5) for (c, _), grid in zip(SHAPES, grids, strict=True)]


@pytest.fixture
def model(flows: list[Any], tmp_path: Path) -> Cflow:
    from unblemish.export.flow_graph import flow_graphs, flow_model

    paths = {}
    for role, graph in flow_graphs(flow_model(flows)).items():
        paths[role] = str(tmp_path / f"{role}.onnx")
        onnx.save(graph, paths[role])
    engine = OrtBackend(1)
    maps = flow_maps(SHAPES, 4, ROWS, COLUMNS, TYPICAL)
    pair = engine.pair(paths["flow_forward"], paths["flow_backward"])
    return Cflow(engine.program(paths["flow"]), pair, maps, ROWS)


def features(batch: int, seed: int = 6) -> np.ndarray:
    """Maps of their own size, repeated on the finest cells."""
    rng = np.random.default_rng(seed)
    parts = []
    for channels, stride in SHAPES:
        times = stride // 4
        own = rng.standard_normal((batch, ROWS // times, COLUMNS // times, channels))
        parts.append(own.repeat(times, axis=1).repeat(times, axis=2))
    return np.concatenate(parts, axis=3).astype(np.float32)


def by_torch(flows: list[Any], found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s and its slope at every finest cell on its own, (B, h, w) and (B, h, w, c), in float64."""
    import torch

    x = torch.from_numpy(found).double().requires_grad_()
    total: Any = torch.zeros(found.shape[:3], dtype=torch.float64)
    row, column = np.mgrid[:ROWS, :COLUMNS]
    first, begin = 0, 0
    for flow, (channels, stride) in zip(flows, SHAPES, strict=True):
        times = stride // 4
        r, c = (torch.from_numpy((a // times).ravel()).repeat(len(found)) for a in (row, column))
        own = x[:, :, :, first : first + channels].reshape(-1, channels)
        usual = torch.from_numpy(TYPICAL[begin : begin + flow.grid[0] * flow.grid[1]]).double()
        below = usual[r * flow.grid[1] + c] - flow.double()(own, r, c)
        total = total + torch.nn.functional.softplus(below).reshape(total.shape)
        first, begin = first + channels, begin + len(usual)
    (slope,) = torch.autograd.grad(total.sum(), x)
    return total.detach().numpy(), slope.numpy()


@pytest.mark.parametrize("batch", [1, 2, 45])
def test_scores_are_those_of_torch(model: Cflow, flows: list[Any], batch: int) -> None:
    found = features(batch)  # 45 images take two runs of the flow
    want, _ = by_torch(flows, found)
    scores = model.scores(found)
    assert scores.dtype == np.float32
    assert scores.shape == (batch, ROWS, COLUMNS)
    np.testing.assert_allclose(scores, want, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(
    "cells",
    [[0], [95], [0, 1, 12, 13], [13, 14, 15, 25, 37, 49], list(range(95, -1, -7))],
)
def test_scores_at_are_the_cells_of_the_whole_map(model: Cflow, cells: list[int]) -> None:
    found = features(3)
    whole = model.scores(found).reshape(3, -1)
    chosen = np.array(cells, np.int32)
    flat = np.ascontiguousarray(found.reshape(3, -1, CHANNELS)[:, chosen])
    np.testing.assert_allclose(model.scores_at(flat, chosen), whole[:, chosen], rtol=1e-5)


def crops(top_left: list[tuple[int, int]], side: int) -> np.ndarray:
    """Numbers of the cells of crops; the last row does not count."""
    y, x = np.mgrid[:side, :side]
    cells = [((top + y) * COLUMNS + left + x) for top, left in top_left]
    out = np.stack(cells).astype(np.int32).reshape(len(top_left), -1)
    out[:, -side:] = -1
    return out


@pytest.mark.parametrize("places", [[(0, 0)], [(4, 8)], [(0, 4), (4, 8), (0, 4)]])
def test_scorer_of_crops_gives_the_whole_maps_scores_and_slopes(
    model: Cflow, flows: list[Any], places: list[tuple[int, int]]
) -> None:
    whole = features(len(places))
    want, slope = by_torch(flows, whole)
    cells = crops(places, 4)
    item = np.arange(len(places))[:, None]
    flat = whole.reshape(len(places), -1, CHANNELS)[item, np.abs(cells)]
    scorer = model.scorer(flat, cells)
    cotangent = np.full_like(flat, 7)
    scores = scorer(flat, cotangent=cotangent)
    counted = cells >= 0
    at = want.reshape(len(places), -1)[item, np.abs(cells)]
    np.testing.assert_allclose(scores[counted], at[counted], rtol=CLOSE, atol=CLOSE)
    slopes = slope.reshape(len(places), -1, CHANNELS)[item, np.abs(cells)]
    off = np.linalg.norm(cotangent[counted] - slopes[counted])
    assert off <= CLOSE * np.linalg.norm(slopes[counted])
    assert not scores[~counted].any()
    assert not cotangent[~counted].any()


def test_scorer_follows_central_differences(model: Cflow, flows: list[Any]) -> None:
    found, step = features(1).reshape(1, -1, CHANNELS), 1e-6
    cells = np.arange(ROWS * COLUMNS, dtype=np.int32)[None]
    cotangent = np.empty_like(found)
    model.scorer(found, cells)(found, cotangent=cotangent)
    direction = features(1, seed=8).reshape(found.shape).astype(np.float64)
    shape = (1, ROWS, COLUMNS, CHANNELS)
    up, down = (
        by_torch(flows, (found.astype(np.float64) + s * step * direction).reshape(shape))[0]
        for s in (1, -1)
    )
    want = (up - down).ravel() / (2 * step)
    slopes = (cotangent.astype(np.float64) * direction).sum(axis=2).ravel()
    np.testing.assert_allclose(slopes, want, atol=CLOSE * np.abs(want).max())


def test_scorer_without_cells_is_zero(model: Cflow) -> None:
    found = features(1).reshape(1, -1, CHANNELS)[:, :5]
    cotangent = np.ones_like(found)
    scores = model.scorer(found, np.full((1, 5), -1, np.int32))(found, cotangent=cotangent)
    assert not scores.any()
    assert not cotangent.any()


def test_score_grows_without_bound_and_never_falls_below_zero(model: Cflow) -> None:
    usual, far = features(1), features(1) * np.float32(30)
    near, away = model.scores(usual), model.scores(far)
    assert near.min() >= 0
    assert np.isfinite(away).all()
    assert away.min() > near.max()


def test_typical_of_other_maps_is_refused() -> None:
    with pytest.raises(ShapeError, match=f"{PLACES} places"):
        flow_maps(SHAPES, 4, ROWS, COLUMNS, TYPICAL[:3])


def test_features_of_another_size_are_refused(model: Cflow) -> None:
    with pytest.raises(ShapeError, match="Fit the bundle again"):
        model.scores(features(1)[:, :4])
    with pytest.raises(ShapeError, match="15 channels"):
        model.scores(features(1)[..., :-1].copy())
