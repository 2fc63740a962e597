"""RGI: the paper's schedule against torch, theorem 2, and batches against single images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.kernels import default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.rgi import RgiMethod, limits_for
from unblemish.runtime.methods.starts import LatentBank
from unblemish.runtime.solvers.loop import Limits

Generate = Callable[[NDArray[Any]], NDArray[np.float64]]


def engine(bundle: Bundle) -> GeneratorEngine:
    pair = open_backend(threads=1).pair(
        str(bundle.graph("generator_forward")), str(bundle.graph("generator_backward"))
    )
    return GeneratorEngine(pair, "z", "image")


def method(bundle: Bundle, **options: Any) -> RgiMethod:
    return RgiMethod(engine(bundle), default_kernels(), **options)


def corrupted(
    generate: Generate, count: int, seed: int = 5
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
    """Images of the manifold, a block of each replaced by values at least 0.3 away."""
    rng = np.random.default_rng(seed)
    clean = generate(rng.standard_normal((count, 4)))
    truth = np.zeros((count, 16, 16), np.bool_)
    for item in range(count):
        top, left = rng.integers(0, 11, 2)
        truth[item, top : top + 5, left : left + 5] = True
    shifted = np.where(clean > 0.5, clean - 0.3, clean + 0.3) * rng.uniform(0.9, 1.0, clean.shape)
    x = np.where(truth[:, None], shifted, clean).astype(np.float32)
    return x, clean, truth


def starts(
    bundle: Bundle, x: NDArray[np.float32], lam: float, count: int = 2
) -> NDArray[np.float32]:
    generator = engine(bundle)
    bank = LatentBank.build(lambda z: np.array(generator.forward(z)), 64, 4)
    return bank.nearest(x, count, np.full(len(x), lam, np.float32))


def fast(steps: int = 200, lam: float = 0.01) -> Limits:
    return limits_for("fast", steps, 1e-5, None, 2, lam)


def _torch_paper(
    z0: NDArray[np.float32], x: NDArray[np.float32], lam: float, steps: int, channels: int
) -> tuple[list[float], NDArray[Any], NDArray[Any]]:
    """The paper's descent written with autograd, on a generator written by hand."""
    torch = pytest.importorskip("torch")
    from onnx import numpy_helper

    held: dict[str, Any] = {}
    model = _graph()
    for w in model.graph.initializer:
        held[w.name] = torch.tensor(numpy_helper.to_array(w).copy())
    z = torch.tensor(z0, requires_grad=True)
    mask = torch.zeros(len(x), channels, 16, 16, requires_grad=True)
    target = torch.tensor(x)
    optimiser = torch.optim.Adam([z, mask], lr=0.1)
    values = []
    for _ in range(steps):
        hidden = torch.tanh(z @ held["w1"] + held["b1"]) @ held["w2"]
        image = torch.sigmoid(
            torch.nn.functional.conv_transpose2d(
                hidden.reshape(-1, 4, 8, 8), held["w3"], held["b3"], stride=2, padding=1
            )
        )
        kept = (1 - mask) * target, (1 - mask) * image
        loss = torch.nn.functional.mse_loss(*kept) + lam * mask.abs().sum() / image[0].numel()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    return values, z.detach().numpy(), mask.detach().numpy()


_GRAPH: list[Any] = []


def _graph() -> Any:
    return _GRAPH[0]


@pytest.fixture(autouse=True)
def _generator_graph(tiny_bundle: Bundle) -> None:
    import onnx

    _GRAPH[:] = [onnx.load(str(tiny_bundle.graph("generator")))]


@pytest.mark.parametrize("channels", [1, 3])
def test_paper_schedule_is_the_autograd_descent_step_by_step(
    tiny_bundle: Bundle, generate: Generate, channels: int
) -> None:
    x, _, _ = corrupted(generate, 1)
    z0 = np.random.default_rng(1).standard_normal((1, 1, 4)).astype(np.float32)
    expected, _, _ = _torch_paper(z0[0], x, 0.1, 50, channels)
    paper = method(tiny_bundle, schedule="paper", shared=channels == 1)
    solution = paper.solve(
        x, z0, np.array([0.1], np.float32), limits_for("paper", 50, 0, None, 1, 0.1)
    )
    # Adam divides by gradients near zero: rounding grows with the steps, to 4 digits after 50.
    np.testing.assert_allclose(solution.trace[0], expected, rtol=1e-3)
    np.testing.assert_allclose(solution.trace[0][:10], expected[:10], rtol=1e-5)
    assert solution.status == (Status.MAX_STEPS,)
    assert solution.mask is not None
    assert solution.mask.shape == (1, channels, 16, 16)


@pytest.mark.parametrize("lam", [1e-2, 1e-3])
def test_mask_support_is_the_corruption_when_lambda_is_small(
    tiny_bundle: Bundle, generate: Generate, lam: float
) -> None:
    """Theorem 2 (ii): below some lambda, thresholding M at 0 gives the true mask exactly."""
    x, clean, truth = corrupted(generate, 6)
    weights = np.full(6, lam, np.float32)
    rgi = method(tiny_bundle)
    solution = rgi.solve(x, starts(tiny_bundle, x, lam), weights, fast(300, lam))
    images = generate(solution.z)
    np.testing.assert_allclose(images, clean, atol=5e-3)
    squared = np.square(images - x).sum(axis=1)
    mask = np.maximum(0, 1 - lam / (2 * np.maximum(squared, 1e-12)))
    np.testing.assert_array_equal(mask > 0, truth)


def test_mask_tends_to_one_on_the_corruption_as_lambda_falls(
    tiny_bundle: Bundle, generate: Generate
) -> None:
    """Theorem 2 (i): M(lambda) -> M*."""
    x, _, truth = corrupted(generate, 3)
    far = []
    for lam in (3e-2, 1e-2, 1e-3):
        weights = np.full(3, lam, np.float32)
        solution = method(tiny_bundle).solve(
            x, starts(tiny_bundle, x, lam), weights, fast(300, lam)
        )
        squared = np.square(generate(solution.z) - x).sum(axis=1)
        mask = np.maximum(0, 1 - lam / (2 * np.maximum(squared, 1e-12)))
        far.append(np.abs(mask - truth).max())
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.01


def test_l2_without_a_mask_is_pulled_away(tiny_bundle: Bundle, generate: Generate) -> None:
    x, clean, _ = corrupted(generate, 4)
    weights = np.full(4, 0.01, np.float32)
    z0 = starts(tiny_bundle, x, 0.01)
    errors = {}
    for masked in (True, False):
        solution = method(tiny_bundle, masked=masked).solve(x, z0, weights, fast(200))
        errors[masked] = np.sqrt(np.square(generate(solution.z) - clean).mean())
    assert errors[True] < 0.1 * errors[False]


def test_l1_profile_restores_too(tiny_bundle: Bundle, generate: Generate) -> None:
    x, clean, _ = corrupted(generate, 4)
    weights = np.full(4, 0.3, np.float32)
    rgi = method(tiny_bundle, norm="l1")
    solution = rgi.solve(x, starts(tiny_bundle, x, 0.05), weights, fast(300))
    error = np.sqrt(np.square(generate(solution.z) - clean).mean(axis=(1, 2, 3)))
    assert np.median(error) < 0.02


def test_batch_gives_what_single_images_give(tiny_bundle: Bundle, generate: Generate) -> None:
    x, _, _ = corrupted(generate, 4)
    weights = np.full(4, 0.01, np.float32)
    z0 = starts(tiny_bundle, x, 0.01)
    together = method(tiny_bundle).solve(x, z0, weights, fast(300))
    for item in range(4):
        one = slice(item, item + 1)
        alone = method(tiny_bundle).solve(x[one], z0[one], weights[one], fast(300))
        # Sums run in another order for another batch: the paths part in the last digits.
        np.testing.assert_allclose(generate(alone.z), generate(together.z[one]), atol=2e-3)


def test_several_starts_keep_the_best(tiny_bundle: Bundle, generate: Generate) -> None:
    x, _, _ = corrupted(generate, 1)
    lam = np.array([0.01], np.float32)
    good = starts(tiny_bundle, x, 0.01, 1)
    bad = np.full_like(good, 3.0)
    limits = limits_for("fast", 300, 1e-5, None, 1, 0.01)
    both = method(tiny_bundle).solve(x, np.concatenate([bad, good], axis=1), lam, limits)
    single = method(tiny_bundle).solve(x, good, lam, limits)
    assert both.value[0] <= single.value[0] * (1 + 1e-3)
