"""From a model to a bundle: gradients, passes, models; not needed at inspection time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unblemish.errors import MissingDependencyError

if TYPE_CHECKING:
    from unblemish.export.gradient.engine import Differentiated, differentiate

__all__ = ["Differentiated", "differentiate"]

_HOME = {
    "Differentiated": "unblemish.export.gradient.engine",
    "differentiate": "unblemish.export.gradient.engine",
}


def __getattr__(name: str) -> Any:
    # onnx is an optional extra: it is imported when a name that needs it is used.
    if name in _HOME:
        import importlib

        try:
            return getattr(importlib.import_module(_HOME[name]), name)
        except ModuleNotFoundError as cause:
            package = (cause.name or "").partition(".")[0]
            if package in ("onnx", "networkx", "google"):
                raise MissingDependencyError(package, "onnx", "differentiating a model") from cause
            raise
    raise AttributeError(f"module 'unblemish.export' has no attribute '{name}'")
