"""AnoGAN's objective against torch, central differences and a weighted median."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.kernels import default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.backends.protocol import Pair, TensorSpec
from unblemish.runtime.engines import load_discriminator_features, load_engines
from unblemish.runtime.methods.anogan import FeatureDistance
from unblemish.runtime.methods.inversion import Inversion, Targets
from unblemish.runtime.methods.losses import image_loss
from unblemish.runtime.methods.rgi import RgiMethod
from unblemish.runtime.solvers.loop import Limits

WEIGHT = 0.3
CLOSE = {"rtol": 2e-4, "atol": 1e-7}  # float32 engines against float64
Float = NDArray[np.float32]


@pytest.fixture
def objective(rich_bundle: Bundle) -> Any:
    """make(x) -> eq. (2) of the tiny generator, in z."""
    backend = open_backend(threads=1)
    engines, kernels = load_engines(rich_bundle, backend), default_kernels()
    pair = load_discriminator_features(rich_bundle, backend)

    def make(x: Float) -> Inversion:
        term = FeatureDistance(pair, kernels, WEIGHT)
        loss = image_loss(kernels, "l1", masked=False)
        targets = Targets(x, np.arange(len(x)))
        ladder = np.ones((1, len(x)), np.float32)
        return Inversion(engines.generator, loss, targets, ladder, terms=(term,))

    return make


def evaluate(problem: Inversion, z: Float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    items = np.arange(len(z))
    found = problem.evaluate((z,), items, np.zeros_like(items))
    return found.value.copy(), found.gradient[0].astype(np.float64)


def test_objective_is_equation_two_over_the_elements_by_torch(
    objective: Any, rich_bundle: Bundle, rng: np.random.Generator
) -> None:
    import torch

    from unblemish.runtime.backends.torch_graph import TorchGraph

    x = rng.random((3, 3, 16, 16)).astype(np.float32)
    z = rng.standard_normal((3, 4)).astype(np.float32)
    generator, layer = (
        TorchGraph(str(rich_bundle.graph(role)), dtype=torch.float64)  # type: ignore[arg-type]
        for role in ("generator", "discriminator_features_forward")
    )
    leaf = torch.from_numpy(z).double().requires_grad_()
    image = generator(z=leaf)["image"]
    inspected = torch.from_numpy(x).double()
    apart = layer(image=inspected)["features"] - layer(image=image)["features"]
    energy = (inspected - image).abs().sum((1, 2, 3)) + WEIGHT * apart.abs().sum((1, 2, 3))
    (slope,) = torch.autograd.grad(energy.sum(), leaf)

    value, gradient = evaluate(objective(x), z)
    np.testing.assert_allclose(value, energy.detach().numpy() / x[0].size, **CLOSE)
    np.testing.assert_allclose(gradient, slope.numpy() / x[0].size, **CLOSE)


def test_gradient_matches_central_differences(objective: Any, rng: np.random.Generator) -> None:
    x = (2 * rng.random((1, 3, 16, 16)) + 1).astype(np.float32)  # above every image: no kinks
    z, direction = rng.standard_normal((2, 1, 4)).astype(np.float32)
    problem, h = objective(x), np.float32(1e-2)
    above, below = (evaluate(problem, z + s * h * direction)[0] for s in (1, -1))
    _, gradient = evaluate(problem, z)
    assert (gradient * direction).sum() == pytest.approx((above - below)[0] / (2 * h), rel=5e-3)


@dataclass
class Linear:
    """y = x A as a pair of engines, for images of 1 x 1 x n or latents; `calls` counts passes."""

    matrix: Float
    entry: str
    out: str
    shape: tuple[int, ...]
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        width = len(self.matrix)
        into = (width,) if self.entry == "z" else (1, 1, width)
        self.inputs = (TensorSpec(self.entry, ("batch", *into), np.dtype(np.float32)),)
        self.outputs = (TensorSpec(self.out, ("batch", *self.shape), np.dtype(np.float32)),)

    def forward(self, feeds: Mapping[str, Float]) -> dict[str, Float]:
        self.calls += 1
        given = feeds[self.entry]
        return {self.out: (given.reshape(len(given), -1) @ self.matrix).reshape(-1, *self.shape)}

    def backward(self, cotangents: Mapping[str, Float]) -> dict[str, Float]:
        given = cotangents[self.out]
        gradient = given.reshape(len(given), -1) @ self.matrix.T
        return {self.entry: gradient.reshape(len(given), *map(int, self.inputs[0].shape[1:]))}


def _weighted_median(points: NDArray[Any], weights: NDArray[Any]) -> float:
    order = np.argsort(points)
    total = np.cumsum(weights[order])
    return float(points[order][np.searchsorted(total, total[-1] / 2)])


@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize("weight", [0.05, 2.0])
def test_search_of_one_latent_ends_at_the_weighted_median(schedule: str, weight: float) -> None:
    """|x - z b|_1 + w |x A - z b A|_1 is least at the median of x / b and x A / b A, weighted."""
    rng = np.random.default_rng(3)
    b = rng.standard_normal((1, 60)).astype(np.float32)
    layer = rng.standard_normal((60, 20)).astype(np.float32) / 8
    x = (0.7 * b + 0.1 * rng.standard_normal((1, 60))).astype(np.float32)
    x[0, :20] += 3  # a defect
    points = np.concatenate([(x / b)[0], (x @ layer / (b @ layer))[0]])
    weights = np.concatenate([abs(b[0]), weight * abs(b @ layer)[0]])
    best = _weighted_median(points, weights)
    least = (weights * abs(points - best)).sum() / 60

    from unblemish.runtime.methods.engine import GeneratorEngine

    made: Any = Linear(b, "z", "image", (1, 1, 60))
    seen: Any = Linear(layer, "image", "features", (20,))
    kernels = default_kernels()
    method = RgiMethod(
        GeneratorEngine(made, "z", "image"), kernels, norm="l1", masked=False, schedule=schedule,
        terms=(FeatureDistance(seen, kernels, weight),),
    )  # fmt: skip
    images, start = x.reshape(1, 1, 1, 60), np.zeros((1, 1, 1), np.float32)
    limits = Limits(500)
    solution = method.solve(images, start, np.ones(1, np.float32), limits)
    assert solution.value[0] == pytest.approx(least, rel=2e-3)
    assert solution.z[0, 0] == pytest.approx(best, abs=0.02)


def test_features_of_the_inspected_images_are_computed_once(rng: np.random.Generator) -> None:
    seen: Pair = Linear(np.eye(6, dtype=np.float32), "image", "features", (6,))  # type: ignore[assignment]
    term = FeatureDistance(seen, default_kernels(), 0.5)
    x, y, g = rng.random((3, 2, 1, 1, 6)).astype(np.float32)
    for image, calls in ((x, 2), (x, 3), (y, 5), (x, 7)):
        value, cotangent = np.zeros(2), np.zeros_like(g)
        term.add(image, g, g, cotangent=cotangent, value=value)
        assert seen.calls == calls  # type: ignore[attr-defined]
        np.testing.assert_allclose(value, 0.5 / 6 * abs(image - g).sum((1, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(cotangent, 0.5 / 6 * np.sign(g - image), rtol=1e-6)
