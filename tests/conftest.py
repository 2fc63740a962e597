"""Fixtures shared by all rooms."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed: no test depends on order or clock."""
    return np.random.default_rng(20240229)
