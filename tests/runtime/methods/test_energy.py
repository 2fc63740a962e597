"""Energy projection on linear autoencoders, whose energies, gradients and minima are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from unblemish.bundle.searches import EnergySettings
from unblemish.errors import ConfigError
from unblemish.kernels import default_kernels
from unblemish.runtime.backends.protocol import TensorSpec
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.autoencoder import AutoencoderEngine, Reconstruction
from unblemish.runtime.methods.energy import EnergyMethod
from unblemish.runtime.methods.energy_scores import SCORE_KINDS, divergence_slopes, score_maps
from unblemish.runtime.methods.reconstruction_loss import ReconstructionLoss

SIDE, CODE = 12, 5
STEP = 1e-3  # of central differences, in intensity: float32 inside limits them to three digits
SLOPE = 2e-3  # share of the largest component


@dataclass
class Linear:
    """f(x) = c + (x - c) U U^T for orthonormal U: the nearest image of a linear manifold.

    A 'VAE' also says mean = x W, log_variance = x V; per pixel `log_scale` = x S.
    """

    channels: int = 1
    vae: bool = False
    scaled: bool = False
    seed: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        size = self.channels * SIDE**2
        basis = np.linalg.qr(rng.standard_normal((size, CODE)))[0]
        self.projector, self.centre = basis @ basis.T, 0.5
        self.maps = {"reconstruction": self.projector}
        if self.vae:
            self.maps["mean"] = 0.1 * rng.standard_normal((size, CODE))
            self.maps["log_variance"] = 0.02 * rng.standard_normal((size, CODE))
        if self.scaled:
            self.maps["log_scale"] = 0.01 * rng.standard_normal((size, size))
        image = ("batch", self.channels, SIDE, SIDE)
        self.outputs = tuple(
            TensorSpec(n, image if m.shape[1] == size else ("batch", CODE), np.dtype(np.float32))
            for n, m in self.maps.items()
        )

    def forward(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        x = feeds["image"].astype(np.float64)
        flat = x.reshape(len(x), -1) - self.centre
        found = {name: flat @ matrix for name, matrix in self.maps.items()}
        found["reconstruction"] = found["reconstruction"] + self.centre
        return {
            name: (v.reshape(x.shape) if v.shape[1] == flat.shape[1] else v).astype(np.float32)
            for name, v in found.items()
        }

    def backward(self, cotangents: Mapping[str, Any]) -> dict[str, Any]:
        total = sum(
            c.reshape(len(c), -1).astype(np.float64) @ self.maps[name].T
            for name, c in cotangents.items()
        )
        shape = (-1, self.channels, SIDE, SIDE)
        return {"image": np.asarray(total).reshape(shape).astype(np.float32)}


def images(count: int, channels: int, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 0.9, (count, channels, SIDE, SIDE)).astype(np.float32)


def normal(model: Linear, count: int, seed: int = 2) -> Any:
    """Images of the manifold, inside [0, 1]."""
    rng = np.random.default_rng(seed)
    flat = 0.5 + 2 * rng.standard_normal((count, model.projector.shape[0])) @ model.projector / 6
    return flat.reshape(count, model.channels, SIDE, SIDE).clip(0.02, 0.98).astype(np.float32)


LOSSES = [
    ("l2", EnergySettings(loss="l2"), Linear()),
    ("l2 colour", EnergySettings(loss="l2"), Linear(3)),
    ("dssim", EnergySettings(loss="dssim"), Linear()),
    ("gaussian", EnergySettings(loss="gaussian", gamma=0.3), Linear(vae=True)),
    ("gaussian per pixel", EnergySettings(loss="gaussian"), Linear(3, vae=True, scaled=True)),
]


def double_loss(settings: EnergySettings, model: Linear, x: Any) -> Any:
    """L_r in float64, by its definition."""
    made = {k: v.astype(np.float64) for k, v in model.forward({"image": x}).items()}
    r2 = np.square(x.astype(np.float64) - made["reconstruction"])
    if settings.loss == "l2":
        return r2.sum(axis=(1, 2, 3))
    log_scale = made.get("log_scale", np.full_like(r2, np.log(settings.gamma or 1.0)))
    return (r2 * np.exp(-2 * log_scale) / 2 + log_scale).sum(axis=(1, 2, 3))


@pytest.mark.parametrize(("name", "settings", "model"), LOSSES, ids=[e[0] for e in LOSSES])
def test_the_loss_and_its_gradient_are_those_of_central_differences(
    name: str, settings: EnergySettings, model: Linear
) -> None:
    engine = AutoencoderEngine(model)
    loss = ReconstructionLoss(default_kernels(), settings, 1.0)
    x = images(2, model.channels)

    def value(at: Any) -> Any:
        return np.array(loss.value(at, engine.forward(at)))

    if settings.loss != "dssim":
        whole = value(x) + loss.constant(x[0].size)
        np.testing.assert_allclose(whole, double_loss(settings, model, x), rtol=1e-5)
    found = loss.gradient(engine, x, engine.forward(x))
    np.testing.assert_array_equal(found.value, value(x))
    slope = loss.gradient(engine, x, engine.forward(x)).total()
    rng = np.random.default_rng(3)
    for _ in range(6):
        direction = rng.standard_normal(x.shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        change = (value(x + STEP * direction) - value(x - STEP * direction)) / (2 * STEP)
        expected = (slope * direction).sum(axis=(1, 2, 3))
        assert (
            np.abs(change - expected).max()
            < SLOPE * np.linalg.norm(slope.reshape(2, -1), axis=1).max()
        )


def method(model: Linear, schedule: str = "fast", **settings: Any) -> EnergyMethod:
    return EnergyMethod(
        AutoencoderEngine(model), default_kernels(), EnergySettings(**settings), 0.0, 1.0, schedule
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_the_fast_schedule_reaches_a_stationary_point_of_the_energy(channels: int) -> None:
    """0 lies in 2 (x - f(x)) + lam d|x - x_0|, where no bound is met."""
    model, lam = Linear(channels), 0.1
    x0 = normal(model, 3)
    x0[:, :, 3:6, 4:9] = 0.9
    found = method(model, lam=lam, tolerance=0.0).solve(x0, max_steps=400)
    assert found.status == (Status.CONVERGED,) * 3
    x = found.images.astype(np.float64)
    slope = 2 * (x - model.forward({"image": found.images})["reconstruction"])
    still = np.abs(x - x0) < 1e-6
    inside = (x > 1e-3) & (x < 1 - 1e-3)
    assert np.abs(slope[still & inside]).max() < lam * 1.1
    moved = ~still & inside
    np.testing.assert_allclose(slope[moved], -lam * np.sign(x - x0)[moved], atol=0.02)


def test_both_schedules_lower_the_energy_and_agree_where_they_end() -> None:
    model, lam = Linear(), 0.1
    x0 = normal(model, 2)
    x0[:, :, 3:6, 4:9] = 0.9
    fast = method(model, lam=lam, tolerance=0.0).solve(x0, max_steps=400)
    paper = method(
        model, "paper", lam=lam, alpha=0.02, step="plain", tolerance=1e-7, max_steps=2000
    ).solve(x0)
    assert (fast.value < 0.8 * np.array([t[0] for t in fast.trace])).all()
    # A subgradient step of fixed size ends beside the kinks of the l1 distance, so above.
    assert (fast.value <= paper.value).all()
    np.testing.assert_allclose(fast.value, paper.value, rtol=0.05)
    assert fast.steps.max() < paper.steps.min()


def test_one_tuned_step_is_equation_8() -> None:
    model, alpha, lam = Linear(), 0.7, 0.05
    x0 = images(2, 1)
    solved = method(model, "paper", alpha=alpha, lam=lam, tolerance=0.0).solve(x0, max_steps=2)
    x = x0.astype(np.float64)
    apart = x - model.forward({"image": x0})["reconstruction"].astype(np.float64)
    gradient = 2 * apart - (2 * apart.reshape(2, -1) @ model.projector).reshape(x.shape)
    expected = np.clip(x - alpha * gradient * np.square(apart), 0, 1)
    assert (np.diff(list(solved.trace), axis=1) < 0).all()
    np.testing.assert_allclose(solved.images, expected, atol=1e-6)


def holed(model: Linear, rows: int = 2) -> tuple[Any, Any]:
    """Images with something else in a hole, and the hole, another in every row."""
    x0 = normal(model, rows)
    x0 += np.random.default_rng(4).normal(0, 0.02, x0.shape).astype(np.float32)
    hole = np.zeros((rows, 1, SIDE, SIDE), np.bool_)
    for row in range(rows):
        hole[row, :, 3 : 7 + row, 4:8] = True
        hole[row, :, 0:2, 10:12] = True
    return np.where(hole, np.float32(0.9), x0), hole


def surface(hole: Any) -> Any:
    """Q of the energy x^T Q x of a surface over a hole (SIDE, SIDE): bending and tension."""
    pairs = []
    number = np.arange(SIDE**2).reshape(SIDE, SIDE)
    for a, b in ((number[1:], number[:-1]), (number[:, 1:], number[:, :-1])):
        pairs += list(zip(a.ravel(), b.ravel(), strict=True))
    differences = np.zeros((len(pairs), SIDE**2))
    for row, (i, j) in enumerate(pairs):
        differences[row, i], differences[row, j] = 1, -1
    inside = hole.ravel()
    laplacian = differences.T @ differences
    near = inside | (laplacian[:, inside] != 0).any(axis=1)
    touching = (differences[:, inside] != 0).any(axis=1)
    tension = differences[touching].T @ differences[touching]
    return laplacian[near].T @ laplacian[near] + tension


def solved_hole(system: Any, x0: Any, hole: Any, centre: float) -> Any:
    """x with x_k as in x0 and (system (x - centre))_h = 0 in the hole."""
    inside, flat = hole.ravel(), x0.ravel().astype(np.float64) - centre
    known = system[np.ix_(inside, ~inside)] @ flat[~inside]
    flat[inside] = -np.linalg.solve(system[np.ix_(inside, inside)], known)
    return (flat + centre).reshape(x0.shape)


def test_a_known_mask_is_filled_as_the_linear_system_says() -> None:
    model = Linear()
    x0, hole = holed(model)
    found = method(model, "fast", tolerance=0.0).solve(x0, free=hole, max_steps=60)
    for image, start, where in zip(found.images, x0, hole, strict=True):
        system = surface(where) @ (np.eye(SIDE**2) - model.projector)
        expected = solved_hole(system, start, where, model.centre)
        np.testing.assert_allclose(image, np.clip(expected, 0, 1), atol=2e-3)
    np.testing.assert_array_equal(found.images[~hole], x0[~hole])


def test_a_known_mask_settles_within_the_steps_that_are_the_default() -> None:
    model = Linear()
    x0, hole = holed(model)
    hole[:, :, 1:11, 1:11] = True  # most of the image: the slower, the less is known
    x0[hole] = 0.5
    found = method(model, "fast").solve(x0, free=hole)
    settled = method(model, "fast", tolerance=0.0).solve(x0, free=hole, max_steps=60)
    assert set(found.status) == {Status.CONVERGED}
    np.testing.assert_allclose(found.images, settled.images, atol=5e-3)


def test_the_seam_is_the_energy_of_the_surface_between_image_and_reconstruction() -> None:
    model = Linear()
    x0, hole = holed(model)
    found = method(model, "fast", tolerance=0.0).solve(x0, free=hole, max_steps=1)
    for value, start, where in zip(found.value, x0, hole, strict=True):
        apart = (np.eye(SIDE**2) - model.projector) @ (start.ravel() - model.centre)
        np.testing.assert_allclose(value, apart @ surface(where) @ apart, rtol=1e-4)


def test_the_papers_step_with_a_known_mask_minimises_the_loss_over_the_hole() -> None:
    model = Linear()
    x0, hole = holed(model)
    settings = {"lam": 0.0, "alpha": 0.45, "tolerance": 0.0}
    found = method(model, "paper", **settings).solve(x0, free=hole, max_steps=600)
    for image, start, where in zip(found.images, x0, hole, strict=True):
        residual = np.eye(SIDE**2) - model.projector
        expected = solved_hole(residual.T @ residual, start, where, model.centre)
        np.testing.assert_allclose(image, np.clip(expected, 0, 1), atol=2e-3)
    np.testing.assert_array_equal(found.images[~hole], x0[~hole])


def test_images_with_holes_are_solved_as_each_alone() -> None:
    model = Linear(channels=3)
    x0, hole = holed(model, 3)
    together = method(model, "fast").solve(x0, free=hole)
    for row in range(3):
        alone = method(model, "fast").solve(x0[row : row + 1], free=hole[row : row + 1])
        np.testing.assert_allclose(together.images[row], alone.images[0], atol=2e-3)


def test_the_search_stops_below_the_training_loss() -> None:
    model = Linear()
    x0 = normal(model, 1)
    x0[:, :, 3:6, 4:9] = 0.9
    whole = method(model, "paper", step="plain", alpha=0.1, lam=0.0, tolerance=0.0).solve(
        x0, max_steps=40
    )
    level = float(whole.trace[0][10])
    stopped = method(
        model, "paper", step="plain", alpha=0.1, lam=0.0, tolerance=0.0,
        training_losses=((0.0, level), (1.0, 2 * level)),
    ).solve(x0, max_steps=40)  # fmt: skip
    assert stopped.status == (Status.CONVERGED,)
    assert stopped.steps[0] == 11


def test_a_deadline_ends_the_search_with_the_best_so_far() -> None:
    ticks = iter(np.arange(0, 1000, 1.0))
    found = method(Linear(), "paper", tolerance=0.0).solve(
        images(2, 1), deadline=12.0, clock=lambda: float(next(ticks))
    )
    assert found.status == (Status.DEADLINE,) * 2
    assert (found.steps < 12).all()
    assert np.isfinite(found.value).all()


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_maps_of_one_pass_are_their_definitions(kind: Any) -> None:
    model = Linear(3, vae=True)
    x = images(2, 3)
    loss = ReconstructionLoss(default_kernels(), EnergySettings(), 1.0)
    maps = score_maps(AutoencoderEngine(model), loss, x, kind)
    outputs = {k: v.astype(np.float64) for k, v in model.forward({"image": x}).items()}
    apart = x - outputs["reconstruction"]
    gradient = 2 * apart - (2 * apart.reshape(2, -1) @ model.projector).reshape(x.shape)
    mean, log_variance = outputs["mean"], outputs["log_variance"]
    pulled = mean @ model.maps["mean"].T
    pulled += 0.5 * (np.exp(log_variance) - 1) @ model.maps["log_variance"].T
    pulled = pulled.reshape(x.shape)
    expected = {
        "error": apart**2,
        "gradient": np.abs(gradient + pulled),
        "gradient-error": np.abs(gradient + pulled) * apart**2,
        "kl": np.abs(pulled),
        "kl-error": np.abs(pulled) * apart**2,
    }[kind].mean(axis=1, keepdims=True)
    assert maps.shape == (2, 1, SIDE, SIDE)
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_a_plain_autoencoder_has_no_divergence() -> None:
    loss = ReconstructionLoss(default_kernels(), EnergySettings(), 1.0)
    with pytest.raises(ConfigError, match="plain autoencoder"):
        score_maps(AutoencoderEngine(Linear()), loss, images(1, 1), "kl")


def test_the_divergence_is_least_at_the_prior() -> None:
    slopes = divergence_slopes(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    assert not slopes["mean"].any()
    assert not slopes["log_variance"].any()


def test_a_model_that_breaks_down_is_reported() -> None:
    class Broken(Linear):
        def forward(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
            found = super().forward(feeds)
            found["reconstruction"][feeds["image"][:, 0, 0, 0] > 0.95] = np.nan
            return found

    x0 = images(2, 1)
    x0[0, 0, 0, 0] = 0.99
    for schedule in ("fast", "paper"):
        found = method(Broken(), schedule).solve(x0, max_steps=5)
        assert found.status[0] is Status.NON_FINITE
        assert found.status[1] is not Status.NON_FINITE
        assert np.isfinite(found.images).all()


def test_reconstruction_is_a_copy() -> None:
    first = method(Linear()).reconstruct(images(1, 1))
    assert isinstance(first, np.ndarray)
    assert Reconstruction(first).mean is None
