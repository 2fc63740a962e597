"""Whether the optional packages of training are there."""

from __future__ import annotations

import importlib.util

from unblemish.errors import MissingDependencyError


def require_training() -> None:
    """Raise MissingDependencyError where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError("torch", "train", "training a generator")
