"""The one error tree: every exception `unblemish` raises on purpose descends from `UnblemishError`.

A message says what happened, what was expected, what was found, and what to do. Numerical failure
during inspection is no exception: it is a `Status` in the result.
"""

from __future__ import annotations


class UnblemishError(Exception):
    """Base of all deliberate errors; the CLI prints its message and exits with code 2."""


class ConfigError(UnblemishError):
    """A setting or argument has the wrong type, range or combination."""


class MissingDependencyError(ConfigError):
    """An optional part is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs '{package}', which is not installed. "
            f"Install it with: pip install 'unblemish[{extra}]'"
        )
        self.package = package
        self.extra = extra


class ModelError(UnblemishError):
    """A model or checkpoint cannot be read, converted or differentiated."""


class UnsupportedOperatorError(ModelError):
    """An operator has no rule; the message names node, operator and opset."""


class ShapeError(ModelError):
    """An array or tensor has a shape or dtype other than the one stated."""


class BundleError(UnblemishError):
    """A bundle is missing, corrupt, foreign, or of an unknown schema."""


class BackendError(UnblemishError):
    """An execution engine is missing or refuses a graph."""


class CalibrationError(UnblemishError):
    """Calibration cannot reach its goal from the images given."""


class SourceError(UnblemishError):
    """An image, folder or video cannot be read or written."""
