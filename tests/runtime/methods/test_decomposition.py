"""The objective of F2PAD and its gradient at native pixels against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.crops import Box, Grid, find_regions, label_parts
from unblemish.runtime.detectors.crops import FeatureCrops
from unblemish.runtime.methods.decomposition import Decomposition, Prior, Weights
from unblemish.runtime.methods.f2pad_batch import Batch, Frame, make_batch, reduce
from unblemish.runtime.resampling import axes
from unblemish.runtime.workspace import Workspace

# float32 network, whitening and kernels against float64, relative to the largest gradient.
GRADIENT = 2e-5
VALUE = 1e-5

UNIT = 0.226
GRID = Grid(height=64, width=48, align=8, margin=16, border=3)


def frame_of(tiny: Any, shape: tuple[int, int], channels: int) -> tuple[Frame, Any]:
    """A frame with two free patches whose start differs from it."""
    from unblemish.runtime.geometry import Geometry

    rng = np.random.default_rng(1)
    soft = [cv2.GaussianBlur(rng.random(shape), (0, 0), 1.5) for _ in range(channels)]
    unit = np.stack(soft, axis=2).astype(np.float32)
    free = np.zeros(shape, np.bool_)
    free[5:14, 6:16] = free[20:30, 18:27] = True
    start = np.where(free[:, :, None], unit + 0.1 * rng.standard_normal(unit.shape), unit)
    start = start.clip(0, 1).astype(np.float32)
    p = tiny.bundle.manifest.preprocess
    parts = label_parts(free)
    geometry = Geometry(p)
    frame = Frame(
        np.ascontiguousarray(unit.transpose(2, 0, 1) / np.float32(UNIT)),
        np.ascontiguousarray(start.transpose(2, 0, 1) / np.float32(UNIT)),
        geometry.unit_to_model(start),
        geometry.unit_to_model(unit),
        parts.labels,
        free,
        np.ones(shape, np.float32),
        np.ones(shape, np.float32),
        [axes(p, shape, 0)],
        UNIT,
        UNIT,
        tiny.detector.tiles(geometry.unit_to_model(unit)),
    )
    return frame, parts


def whole_batch(frame: Frame, parts: Any) -> Batch:
    from unblemish.runtime.crops import whole_regions

    return make_batch(frame, whole_regions(parts.items, frame.axes, GRID))


def objective(tiny: Any, batch: Batch, weights: Weights, prior: Prior | None) -> Decomposition:
    scores = FeatureCrops(
        tiny.detector,
        batch.view.images,
        None,
        [r.crop for r in batch.regions],
        np.ones((len(batch.x), 16, 12), np.bool_),
        12,
    )
    return Decomposition(NumpyKernels(), scores, batch.view, batch.x, batch.free, weights, prior)


def autograd(tiny: Any, frame: Frame, batch: Batch, n0: Any, weights: Weights, prior: Prior) -> Any:
    """Value and gradient by torch, from equations (7), (8), (10) and (11)."""
    torch = pytest.importorskip("torch")
    import torch.nn.functional as F

    n = torch.tensor(n0[0], dtype=torch.float64, requires_grad=True)
    rows, columns = frame.axes[0]
    height, width = frame.shape
    down = torch.tensor(rows.matrix((0, 64), (0, height)), dtype=torch.float64)
    across = torch.tensor(columns.matrix((0, 48), (0, width)), dtype=torch.float64)
    w1, w2 = (torch.tensor(w, dtype=torch.float64) for w in tiny.weights)
    # The view is exact about the start, whatever the geometry clipped there.
    start = torch.tensor(batch.start[0], dtype=torch.float64)
    image = torch.tensor(frame.images[0], dtype=torch.float64)
    image = image + UNIT * (down @ (n - start) @ across.T)
    f = F.conv2d(
        torch.tanh(F.conv2d(image[None], w1, stride=2, padding=1)), w2, stride=2, padding=1
    )
    f = f[0].permute(1, 2, 0).reshape(-1, 6)
    model = tiny.detector.model
    lower = torch.zeros((len(model.mean), 6, 6), dtype=torch.float64)
    r, c = np.tril_indices(6)
    lower[:, r, c] = torch.tensor(model.whitening, dtype=torch.float64)
    d = f - torch.tensor(model.mean, dtype=torch.float64)
    value = torch.einsum("lij,lj->li", lower, d).square().sum()
    free = torch.tensor(batch.free[0, 0] > 0)
    x = torch.tensor(batch.x[0], dtype=torch.float64)
    a = (x - n).square().sum(0)[free]
    a = a[a > 0]
    value = value + float(weights.sparsity[0, 0]) * torch.log((a + 1e-4).sqrt() + a.sqrt()).sum()
    silent = int(free.sum()) - len(a)
    value = value + float(weights.sparsity[0, 0]) * silent * 0.5 * np.log(1e-4)
    e = n.permute(1, 2, 0)[:, :, None] - torch.tensor(prior.means, dtype=torch.float64)
    p = torch.tensor(prior.precisions, dtype=torch.float64)
    distance = torch.einsum("hwqi,qij,hwqj->hwq", e, p, e).min(-1).values
    value = value + float(weights.prior[0]) * distance[free].sum()
    for step in (n[:, 1:] - n[:, :-1], n[:, :, 1:] - n[:, :, :-1]):
        value = value + float(weights.variation[0]) * step.square().sum(0).sqrt().sum()
    (gradient,) = torch.autograd.grad(value, n)
    return value.item(), gradient.numpy()


def some_weights() -> Weights:
    one = np.ones(1, np.float32)
    return Weights(3 * one, 0.7 * one, np.array([[40.0]], np.float32), 1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(64, 48), (83, 101), (40, 30)])
def test_value_and_gradient_match_autograd(
    make_tiny: Callable[..., Any], shape: tuple[int, int], channels: int
) -> None:
    tiny = make_tiny(channels)
    frame, parts = frame_of(tiny, shape, channels)
    batch = whole_batch(frame, parts)
    prior = Prior(
        np.array([[2.0] * channels, [1.0] * channels], np.float32),
        np.stack([np.eye(channels), 2 * np.eye(channels)]).astype(np.float32),
    )
    weights = some_weights()
    found = objective(tiny, batch, weights, prior).evaluate(
        (batch.start,), np.array([0]), np.array([0])
    )
    value, gradient = autograd(tiny, frame, batch, batch.start, weights, prior)
    assert found.value[0] == pytest.approx(value, rel=VALUE)
    atol = GRADIENT * np.abs(gradient).max()
    np.testing.assert_allclose(found.gradient[0][0], gradient, atol=atol)


def test_gradient_is_that_of_the_value(make_tiny: Callable[..., Any]) -> None:
    """Central differences along random directions, through network and resampling."""
    tiny = make_tiny(1)
    frame, parts = frame_of(tiny, (83, 101), 1)
    batch = whole_batch(frame, parts)
    smooth = replace(some_weights(), sparsity=np.zeros((1, 1), np.float32))
    problem = objective(tiny, batch, smooth, None)
    first = np.array([0])
    gradient = problem.evaluate((batch.start,), first, first).gradient[0].astype(np.float64)
    rng = np.random.default_rng(3)
    for _ in range(3):
        direction = cv2.GaussianBlur(rng.standard_normal((83, 101)), (0, 0), 2)[None, None]
        direction = (direction / np.abs(direction).max()).astype(np.float32)
        size = np.float32(2e-3)
        ends = [
            problem.evaluate((batch.start + sign * size * direction,), first, first).value[0]
            for sign in (1, -1)
        ]
        slope = float((gradient * direction).sum())
        # Differences of float32 sums, over a step where norms have kinks nearby.
        assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(slope, rel=1e-2)


def test_crops_with_margin_give_the_scores_and_the_gradient_of_the_whole_image(
    make_tiny: Callable[..., Any],
) -> None:
    """The tiny network sees 7 pixels, so that a margin of 16 hides nothing from a crop."""
    tiny = make_tiny(1)
    frame, parts = frame_of(tiny, (64, 48), 1)
    first = np.array([0])
    everything = np.ones((1, 16, 12), np.bool_)
    full = FeatureCrops(tiny.detector, frame.images, None, [Box(0, 0, 64, 48)], everything, 12)
    features = np.array(tiny.detector.features(frame.images))
    grid = Grid(height=64, width=48, align=8, margin=8, border=3)
    regions = find_regions(parts.items, frame.axes, grid)
    assert all(r.crop.area < 64 * 48 for r in regions)
    rng = np.random.default_rng(4)
    for region in regions:
        batch = make_batch(frame, [region])
        crop = region.crop
        cells = np.ones((1, crop.height // 4, crop.width // 4), np.bool_)
        scores = FeatureCrops(tiny.detector, batch.view.images, [features[0]], [crop], cells, 12)
        n = batch.start + np.where(batch.free > 0, rng.normal(0, 0.2, batch.start.shape), 0)
        n = n.astype(np.float32)
        image = frame.images.copy()
        seen = batch.view.project(n, first, Workspace())
        image[(slice(None), slice(None), *crop.slices)] = seen
        _, expected = full.evaluate(image, first)
        expected = expected[(slice(None), slice(None), *crop.slices)].copy()
        inside = (slice(crop.top // 4, crop.bottom // 4), slice(crop.left // 4, crop.right // 4))
        whole_cells = full.cells[0][inside].copy()
        _, gradient = scores.evaluate(np.ascontiguousarray(seen), first)
        scale = np.abs(expected).max()
        free = batch.near[0] > 0
        np.testing.assert_allclose(scores.cells[0], whole_cells, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(
            gradient[0, :, free], expected[0, :, free], atol=GRADIENT * scale
        )


def test_frames_can_be_reduced_for_large_regions(make_tiny: Callable[..., Any]) -> None:
    tiny = make_tiny(1)
    frame, parts = frame_of(tiny, (83, 101), 1)
    small, items = reduce(frame, parts.items, 2)
    assert small.shape == (42, 51)
    for part, before in zip(items, parts.items, strict=True):
        assert part.box.area == pytest.approx(before.box.area / 4, rel=0.5)
    batch = whole_batch(small, type(parts)(small.labels, tuple(items)))
    np.testing.assert_allclose(
        batch.view.down[0] @ small.start[0] @ batch.view.across[0] * UNIT,
        frame.images[0, 0], atol=0.12,
    )  # fmt: skip
    assert batch.area[0] == pytest.approx(64 * 48 / (42 * 51))
