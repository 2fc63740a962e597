"""Whole searches with a generator on the device against those of the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_backend import EmulatedBackend
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.runtime.inspection import Status
from unblemish.runtime.options import SearchOptions
from unblemish.runtime.search import Search

Frames = Callable[[int], list[NDArray[Any]]]


@pytest.fixture
def frames(generate: Any) -> Frames:
    """frames(count): parts of the tiny generator, every second with a blemish."""

    def make(count: int) -> list[NDArray[Any]]:
        rng = np.random.default_rng(5)
        images = generate(rng.standard_normal((count, 4))).transpose(0, 2, 3, 1).astype(np.float32)
        for k in range(0, count, 2):
            images[k, 3 : 6 + k % 5, 6:10] = 0.98 if images[k].mean() < 0.5 else 0.02
        return list(images)

    return make


def both(
    bundle: Bundle, kernels: Any, *, capturable: bool = True, **options: Any
) -> tuple[Search, Search]:
    """The search on the CPU, and the one on the device."""
    host = Search(bundle, SearchOptions(backend="onnxruntime", threads=1, **options))
    backend = EmulatedBackend(capturable=capturable)
    return host, Search(bundle, SearchOptions(backend=backend, **options), kernels=kernels)


def same(found: Any, expected: Any) -> None:
    """As the host has it, but for roundings, which accepted steps may amplify."""
    assert found.status == expected.status
    np.testing.assert_allclose(found.restored, expected.restored, atol=2e-3)
    assert ((found.mask > 0.5) != (expected.mask > 0.5)).mean() < 0.01
    assert found.objective == pytest.approx(expected.objective, rel=1e-3)


def test_try(tiny_bundle: Bundle, kernels: Any, frames: Frames) -> None:
    host, ours = both(tiny_bundle, kernels)
    for a, b in zip(host.many(frames(5)), ours.many(frames(5)), strict=True):
        print(a.status, b.status, a.steps, b.steps, a.objective, b.objective)
        n = min(len(a.trace), len(b.trace))
        print(np.array(a.trace)[:n] / np.array(b.trace)[:n])
        same(b, a)
    assert ours._device._sizes
