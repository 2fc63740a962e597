"""Collect the figures of an export, and refuse it at the first that is too large."""

from __future__ import annotations

import numpy as np

from unblemish.errors import ModelError
from unblemish.export.options import ExportOptions
from unblemish.export.parity.engine import Array, relative_error

KINKS = 25.0


class Gate:
    """Collects figures; raises at the first one above its tolerance (or not a number)."""

    def __init__(self, span: float, options: ExportOptions) -> None:
        self.figures: dict[str, float] = {}
        self._span = span
        self.options = options

    def image(self, name: str, found: Array, expected: Array) -> None:
        """Largest difference of images, as a share of the range."""
        self._same_shape(name, found, expected)
        difference = np.abs(found.astype(np.float64) - expected).max() / self._span
        self.note(name, float(difference), self.options.image_tolerance)

    def gradient(self, name: str, found: Array, expected: Array) -> None:
        """Relative l2 error by item: the best within tolerance, the worst within KINKS of it."""
        self._same_shape(name, found, expected)
        errors = [relative_error(f, e) for f, e in zip(found, expected, strict=True)]
        tolerance = self.options.gradient_tolerance
        self.note(name, float(np.min(errors)), tolerance)
        self.note(f"{name}_worst", float(np.max(errors)), KINKS * tolerance)

    def note(self, name: str, value: float, tolerance: float) -> None:
        """Record a figure. Raises: ModelError where it is above its tolerance, or no number."""
        self.figures[name] = value
        if not value <= tolerance:
            raise ModelError(
                f"export refused: {name} differs from its reference by {value:.3g}, allowed is "
                f"{tolerance:.3g}. Nothing was written. The graph is not the model: please report "
                "it, or raise the tolerance if you know why."
            )

    @staticmethod
    def _same_shape(name: str, found: Array, expected: Array) -> None:
        if found.shape != expected.shape:
            raise ModelError(
                f"export refused: {name} has shape {found.shape}, expected {expected.shape}. "
                "Nothing was written. If the model was exported for a batch of one, export it with "
                "a symbolic batch."
            )
