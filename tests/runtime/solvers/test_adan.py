"""Adan with shared gradients against a transcription in float64, and its handling of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.solvers.adan import Adan, Pixels, Sharing

Double = NDArray[np.float64]

# float32 moments through 25 updates; Adan divides by roots of small second moments.
UPDATES = 2e-4

SHARING = Sharing(radius=2, sigma_space=1.5, sigma_colour=0.8)
RATE, FLOOR, CLIP, LOWER, UPPER = 0.02, 0.05, 0.3, 0.0, 2.0


def problem(seed: int = 0) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.2, 1.8, (2, 3, 9, 7)).astype(np.float32)
    start = np.clip(x + 0.4 * rng.standard_normal(x.shape), LOWER, UPPER).astype(np.float32)
    target = rng.uniform(0, 2, x.shape).astype(np.float32)
    free = (rng.random((2, 1, 9, 7)) < 0.7).astype(np.uint8)
    return x, start, target, free


def pixels(x: Any, free: Any) -> Pixels:
    rate = np.array([RATE, 2 * RATE], np.float32)[: len(x)]
    return Pixels(x, free, rate, CLIP, LOWER, UPPER)


def shared(gradient: Double, x: Double, sharing: Sharing | None) -> Double:
    """Eqs. (13) and (14), pixel by pixel."""
    if sharing is None:
        return gradient
    out = np.zeros_like(gradient)
    _, _, height, width = x.shape
    k = sharing.radius
    for b in range(len(x)):
        for i in range(height):
            for j in range(width):
                total = 0.0
                for p in range(max(i - k, 0), min(i + k + 1, height)):
                    for q in range(max(j - k, 0), min(j + k + 1, width)):
                        colour = np.square(x[b, :, p, q] - x[b, :, i, j]).sum()
                        space = (p - i) ** 2 + (q - j) ** 2
                        w = np.exp(-space / sharing.sigma_space - colour / sharing.sigma_colour)
                        out[b, :, i, j] += w * gradient[b, :, p, q]
                        total += w
                out[b, :, i, j] /= total
    return out


def transcribed(x: Any, n: Any, target: Any, free: Any, sharing: Sharing | None, steps: int) -> Any:
    """Xie et al., algorithm 1, without weight decay, with the step of eq. (15)."""
    x, n, target = x.astype(float), n.astype(float), target.astype(float)
    m, v, s, last = (np.zeros_like(n) for _ in range(4))
    rate = np.array([RATE, 2 * RATE])[:, None, None, None]
    for t in range(1, steps + 1):
        g = np.clip(shared(2 * (n - target), x, sharing), -CLIP, CLIP)
        change = g - last if t > 1 else np.zeros_like(g)
        last = g
        m = 0.98 * m + 0.02 * g
        v = 0.92 * v + 0.08 * change
        s = 0.99 * s + 0.01 * np.square(g + 0.92 * change)
        m_hat, v_hat, s_hat = m / (1 - 0.98**t), v / (1 - 0.92**t), s / (1 - 0.99**t)
        gamma = rate / np.maximum(np.abs(x - n), FLOOR)
        moved = n - gamma * (m_hat + 0.92 * v_hat) / (np.sqrt(s_hat) + 1e-8)
        n = np.where(free > 0, np.clip(moved, LOWER, UPPER), n)
    return n


def solve(x: Any, start: Any, target: Any, free: Any, sharing: Sharing | None, steps: int) -> Any:
    solver = Adan(NumpyKernels(), pixels(x, free), sharing, FLOOR)
    state = solver.init((start,))
    for _ in range(steps):
        gradient = (2 * (state.query[0] - target)).astype(np.float32)
        state = solver.step(state, np.zeros(len(x)), (gradient,))
    return state.query[0]


def test_adan_follows_the_published_update() -> None:
    x, start, target, free = problem()
    found = solve(x, start, target, free, None, 25)
    expected = transcribed(x, start, target, free, None, 25)
    np.testing.assert_allclose(found, expected, atol=UPDATES)
    assert np.abs(found - start).max() > 0.1


def test_adan_shares_gradients_between_neighbours() -> None:
    x, start, target, free = problem(1)
    found = solve(x, start, target, free, SHARING, 4)
    expected = transcribed(x, start, target, free, SHARING, 4)
    np.testing.assert_allclose(found, expected, atol=UPDATES)
    assert np.abs(found - transcribed(x, start, target, free, None, 4)).max() > 100 * UPDATES


def test_pixels_that_are_not_free_stay_and_the_range_is_kept() -> None:
    x, start, target, free = problem(3)
    found = solve(x, start, 10 * target - 5, free, SHARING, 40)
    fixed = np.broadcast_to(free == 0, found.shape)
    np.testing.assert_array_equal(found[fixed], start[fixed])
    assert found.min() >= LOWER
    assert found.max() <= UPPER
    assert (found == UPPER).any()


def test_rows_that_stay_go_on_as_if_alone() -> None:
    x, start, target, free = problem(4)
    solver = Adan(NumpyKernels(), pixels(x, free), SHARING, FLOOR)
    state = solver.init((start,))
    for step in range(6):
        if step == 3:
            state = solver.take(state, np.array([1]))
        rows = np.arange(2) if step < 3 else np.array([1])
        gradient = (2 * (state.query[0] - target[rows])).astype(np.float32)
        state = solver.step(state, np.zeros(len(rows)), (gradient,))
    whole = solve(x, start, target, free, SHARING, 6)
    np.testing.assert_array_equal(state.query[0][0], whole[1])


def test_a_failed_row_is_done() -> None:
    x, start, _, free = problem(5)
    solver = Adan(NumpyKernels(), pixels(x, free), None, FLOOR)
    state = solver.step(solver.init((start,)), np.array([1.0, np.inf]), (np.zeros_like(start),))
    assert solver.done(state).tolist() == [False, True]
