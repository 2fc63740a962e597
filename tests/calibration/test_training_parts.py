"""Parts of training against closed forms: augmentation, averages, growth, loss, PCA, images."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unblemish.bundle.manifest import Preprocess
from unblemish.calibration.training import TrainOptions
from unblemish.calibration.training.augment import augment
from unblemish.calibration.training.dataset import open_normals, prepare
from unblemish.calibration.training.ema import MovingAverage
from unblemish.calibration.training.loop import Run
from unblemish.calibration.training.pggan_trainer import PgganTrainer, growth_at, real_at
from unblemish.calibration.training.ppca import fit_linear_part, fit_ppca
from unblemish.calibration.training.vae_trainer import VaeTrainer, vae_loss
from unblemish.export.models.vae import Vae, VaeSettings
from unblemish.runtime.geometry import Geometry

HALF = 2e-3  # float16 holds [0, 1] to about 1 / 2048; twice that in [-1, 1]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_augment_by_nothing_changes_nothing() -> None:
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    assert torch.equal(augment(images, (), _generator()), images)


def test_augment_shifts_by_whole_pixels() -> None:
    row = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    shifted = augment(row.expand(16, 1, 64, 64), ("shift",), _generator())
    known = set(row.unique().tolist())
    assert set(shifted.unique().tolist()) <= known  # nothing is interpolated
    moves = {int((row[0, 0, 0] == image[0, 0, 32]).nonzero()) - 32 for image in shifted}
    assert len(moves) > 1
    assert max(abs(move) for move in moves) <= 2  # 3 % of 64 pixels


@pytest.mark.parametrize(("name", "axis"), [("hflip", 3), ("vflip", 2)])
def test_augment_flips_some_images(name: str, axis: int) -> None:
    images = torch.rand(16, 2, 4, 6) * 2 - 1
    out = augment(images, (name,), _generator())
    flipped = [torch.equal(o, i.flip(axis - 1)) for o, i in zip(out, images, strict=True)]
    same = [torch.equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(a or b for a, b in zip(flipped, same, strict=True))
    assert any(flipped)
    assert any(same)


def test_augment_stays_in_range_and_follows_its_generator() -> None:
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    names = ("shift", "rotate", "brightness", "hflip")
    one, again = (augment(images, names, _generator()) for _ in range(2))
    assert torch.equal(one, again)
    assert float(one.detach().abs().max()) <= 1.0


def test_moving_average_forgets_its_random_start() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    average = MovingAverage(network, decay=0.9)
    with torch.no_grad():
        network.weight.fill_(5.0)
    expected = float(average.network.weight)
    for step in range(3):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * 5.0
        average.update(network, step)
    assert float(average.network.weight) == pytest.approx(expected, rel=1e-5)


@given(st.integers(1, 9), st.lists(st.floats(0, 1), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_growth_never_goes_back(stages: int, shares: list[float]) -> None:
    grown = [growth_at(share, stages) for share in sorted(shares)]
    sizes = [stage - 1 + fade for stage, fade in grown]
    assert sizes == sorted(sizes)
    assert all(0 <= stage < stages and 0 <= fade <= 1 for stage, fade in grown)
    assert growth_at(0.0, stages) == (0, 1.0)
    assert growth_at(1.0, stages) == (stages - 1, 1.0)


def test_real_images_fade_like_generated_ones() -> None:
    images = torch.rand(2, 1, 16, 16)
    small = torch.nn.functional.avg_pool2d(images, 2)
    coarse = (
        torch.nn.functional.avg_pool2d(images, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    torch.testing.assert_close(real_at(images, 1, 3, 1.0), small)
    torch.testing.assert_close(real_at(images, 1, 3, 0.25), 0.25 * small + 0.75 * coarse)


def test_pggan_trainer_ends_fully_grown() -> None:
    trainer = PgganTrainer(TrainOptions(model="pggan", size=16, width=32, latent=4, steps=9), 1)
    seen = []
    for step in range(9):
        trainer.progress = step / 9
        trainer.step(torch.rand(2, 1, 16, 16), _generator(), step, 1e-4)
        seen.append(trainer.generator.stage)
    assert seen[0] == 0
    assert seen[-1] == 2
    assert trainer.growth() == {"stage": 2.0, "fade": 1.0}
    assert trainer.preview(torch.rand(3, 1, 16, 16))[1].shape == (3, 1, 16, 16)


def test_vae_loss_is_the_bound_at_the_best_variance() -> None:
    torch.manual_seed(0)
    image, reconstruction = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    mean, log_variance = torch.rand(2, 3), torch.rand(2, 3) - 2
    elements = 16
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()),
        torch.distributions.Normal(0.0, 1.0),
    ).sum(1).mean()  # fmt: skip
    bounds = []
    for variance in np.linspace(0.01, 1.0, 2000):  # the likelihood's variance, tried out
        squares = float((image - reconstruction).square().mean())
        likelihood = 0.5 * math.log(variance) + 0.5 * squares / variance
        bounds.append(likelihood + float(divergence) / elements)
    found = float(vae_loss(image, reconstruction, mean, log_variance, 1.0))
    assert found + 0.5 == pytest.approx(min(bounds), abs=1e-4)  # 1/2: the constant left out


def test_ppca_recovers_a_linear_model(rng: np.random.Generator) -> None:
    weights = np.linalg.qr(rng.standard_normal((30, 3)))[0] * [3.0, 2.0, 1.0]
    z = rng.standard_normal((20000, 3))
    noise = 0.2
    x = z @ weights.T + 5.0 + noise * rng.standard_normal((20000, 30))
    fitted = fit_ppca(torch.from_numpy(x[:4000]).float(), 3)
    assert fitted.noise == pytest.approx(noise**2, rel=0.05)  # 4,000 samples
    decode = fitted.decode.double().numpy()
    # The model is known up to a rotation of z: compare covariances.
    np.testing.assert_allclose(decode @ decode.T, weights @ weights.T, atol=0.35)
    np.testing.assert_allclose(fitted.mean.numpy(), 5.0, atol=0.1)


def test_ppca_codes_are_the_posterior_mean_and_variance(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((60, 12)) * np.linspace(3, 0.3, 12)).float()
    fitted = fit_ppca(x, 4)
    w = fitted.decode.double().numpy()
    precision = w.T @ w + fitted.noise * np.eye(4)
    np.testing.assert_allclose(
        fitted.encode.double().numpy(), np.linalg.solve(precision, w.T), rtol=1e-4, atol=1e-5
    )
    expected = fitted.noise * np.diag(np.linalg.inv(precision))
    np.testing.assert_allclose(fitted.spread.numpy(), expected, rtol=1e-4)


def test_ppca_leaves_latents_without_images_at_the_prior() -> None:
    fitted = fit_ppca(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), 5)
    assert torch.isfinite(fitted.decode).all()
    assert (fitted.decode[:, 1:] == 0).all()
    assert (fitted.spread[1:] == 1).all()


def test_fitted_vae_reconstructs_by_its_linear_part(rng: np.random.Generator) -> None:
    basis = torch.from_numpy(rng.standard_normal((3, 1, 16, 16))).float() / 8
    images = torch.einsum("ni,ichw->nchw", torch.randn(64, 3, generator=_generator()), basis)
    network = Vae(VaeSettings(16, 1, 3, 4, 8)).eval()
    fit_linear_part(network, images)
    with torch.no_grad():
        found = network.folded()(images)[0]
    # Images of three dimensions and a latent of three: nothing but rounding is lost.
    torch.testing.assert_close(found, images, atol=2e-3, rtol=0)


def test_gentle_rate_is_for_silent_layers_alone() -> None:
    trainer = VaeTrainer(TrainOptions(size=16, width=4, latent=3, steps=1), 1)
    rates = {
        id(parameter): group["factor"]
        for group in trainer.optimiser.param_groups
        for parameter in group["params"]
    }
    network = trainer.network
    assert rates[id(network.encoder.mean.weight)] < 1.0
    assert rates[id(network.decoder.start.weight)] == 1.0
    assert network.decoder.linear is not None
    assert id(network.decoder.linear.weight) not in rates  # the closed form stays


def test_learning_rate_warms_up_and_falls(tmp_path: Path) -> None:
    options = TrainOptions(steps=1000, lr=1.0)
    trainer = VaeTrainer(TrainOptions(size=8, width=2, latent=2, steps=1), 1)
    run = Run(options, trainer, None, tmp_path)  # type: ignore[arg-type]
    rates = []
    for step in range(1001):
        run.step = step
        rates.append(run.learning_rate())
    assert rates[0] == pytest.approx(1 / 50, rel=1e-3)
    assert max(rates) == pytest.approx(1.0, rel=0.01)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)


@pytest.mark.parametrize("geometry", ["stretch", "letterbox"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_training_sees_what_inspection_sees(
    rng: np.random.Generator, geometry: str, dtype: type
) -> None:
    white = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    frame = (rng.random((37, 53, 3)) * white).astype(dtype)
    preprocess = Preprocess.model_validate(
        {"width": 16, "height": 16, "channels": 1, "low": -1, "high": 1, "geometry": geometry}
    )
    inspected = Geometry(preprocess).to_model(frame)[0]
    np.testing.assert_allclose(
        prepare(frame, preprocess).astype(np.float32) * 2 - 1, inspected, atol=HALF
    )


def test_training_sees_twelve_bits_in_sixteen(tmp_path: Path, rng: np.random.Generator) -> None:
    frame = rng.integers(0, 256, (16, 16)).astype(np.uint16) * 16
    cv2.imwrite(str(tmp_path / "a.png"), frame)
    options = TrainOptions(size=16, steps=1, held_back=0.0, white=4080.0)
    normals = open_normals(tmp_path, options)
    assert normals.preprocess.white == 4080.0
    np.testing.assert_allclose((normals.examples(1)[0, 0] + 1) / 2, frame / 4080, atol=HALF)


def test_training_on_tiles_draws_windows_of_the_scaled_frame(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    frame = rng.integers(0, 255, (40, 60), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), frame)
    options = TrainOptions(size=16, steps=1, geometry="tiles", scale=1.0, held_back=0.0)
    normals = open_normals(tmp_path, options)
    batch = normals.batch(30, rng)
    places = set()
    for image in np.rint((batch[:, 0] + 1) / 2 * 255):
        match = cv2.matchTemplate(frame, image.astype(np.uint8), cv2.TM_SQDIFF)
        # float16 may round a few pixels to the next grey level; other windows differ by millions.
        assert match.min() < 50
        places.add(int(match.argmin()))
    assert len(places) > 10


def test_split_is_the_same_for_the_same_seed(tmp_path: Path, rng: np.random.Generator) -> None:
    for index in range(20):
        image = rng.integers(0, 255, (8, 8), np.uint8)
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    one, again, other = (
        open_normals(tmp_path, TrainOptions(size=8, steps=1, seed=seed)) for seed in (1, 1, 2)
    )
    assert one.held_back == again.held_back
    assert one.held_back != other.held_back
    assert len(one.held_back) == 2
    assert not set(one.held_back) & set(one.train)
