"""Whether the optional packages of training are there."""

from __future__ import annotations

from unblemish.errors import MissingDependencyError


def require_training() -> None:
    """Raise MissingDependencyError where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("torch", "train", "training a model") from error
