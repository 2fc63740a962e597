"""Adam against torch, and its handling of rows."""

from __future__ import annotations

import numpy as np
import pytest

from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.solvers.adam import Adam

# Both sides round to float32 in every one of 30 updates.
UPDATES = 2e-5


def test_adam_matches_torch_with_a_rate_per_group() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = (
        rng.standard_normal((2, 5)).astype(np.float32),
        rng.standard_normal((2, 1, 4, 4)).astype(np.float32),
    )
    leaves = [torch.tensor(group, requires_grad=True) for group in start]
    optimiser = torch.optim.Adam(
        [{"params": [leaves[0]], "lr": 0.1}, {"params": [leaves[1]]}], 0.01
    )
    solver = Adam(NumpyKernels(), (0.1, 0.01))
    state = solver.init(start)
    for _ in range(30):
        optimiser.zero_grad()
        value = sum(((leaf - 0.3) ** 4).sum() for leaf in leaves)
        value.backward()
        optimiser.step()
        gradient = tuple((4 * (group - np.float32(0.3)) ** 3) for group in state.query)
        state = solver.step(state, np.zeros(2), gradient)
    for leaf, group in zip(leaves, state.query, strict=True):
        np.testing.assert_allclose(group, leaf.detach().numpy(), atol=UPDATES)


def test_adam_leaves_the_start_alone() -> None:
    start = np.ones((1, 3), np.float32)
    solver = Adam(NumpyKernels(), (0.1,))
    solver.step(solver.init((start,)), np.zeros(1), (np.ones((1, 3), np.float32),))
    np.testing.assert_array_equal(start, 1)


def test_adam_is_done_with_rows_that_failed_once() -> None:
    solver = Adam(NumpyKernels(), (0.1,))
    state = solver.init((np.zeros((3, 2), np.float32),))
    zero = np.zeros((3, 2), np.float32)
    state = solver.step(state, np.array([1.0, np.inf, 1.0]), (zero,))
    state = solver.step(state, np.ones(3), (zero,))
    assert solver.done(state).tolist() == [False, True, False]
    assert solver.done(solver.take(state, np.array([1, 2]))).tolist() == [True, False]
