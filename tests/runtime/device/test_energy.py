"""Whole searches with an autoencoder on the device against those of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend

from unblemish.bundle import Bundle
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.inspector import Inspector


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_try(make_energy_bundle: Any, kernels: Any, schedule) -> None:
    bundle = make_energy_bundle(energy={"score": "l2", "alpha": 0.2})
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (16, 16), np.uint8) for _ in range(11)]
    with (
        Inspector.open(bundle, schedule=schedule, max_steps=12) as host,
        Inspector.open(bundle, backend=EmulatedBackend(), kernels=kernels, schedule=schedule,
            max_steps=12) as ours,
    ):
        for a, b in zip(host._open().many(frames), ours._open().many(frames), strict=True):
            assert a.status == b.status
            assert a.steps == b.steps
            np.testing.assert_allclose(a.trace, b.trace, rtol=1e-4)
            np.testing.assert_allclose(a.score, b.score, atol=1e-4)
        assert ours._open()._device._held
