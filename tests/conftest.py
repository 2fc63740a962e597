"""Fixtures shared by all rooms."""

from __future__ import annotations

import os

import numpy as np
import pytest

# As the command line sets it; the decoder reads it once, with the first video of the process.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed: no test depends on order or clock."""
    return np.random.default_rng(20240229)
