"""What the terms of energy projection demand of their arrays, in the words of `checks`."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from unblemish.errors import ConfigError
from unblemish.kernels.checks import _apart, _array, _image, _per_item

LARGEST_WINDOW = 511


def dssim(
    x: Any,
    g: Any,
    scale: Any,
    *,
    data_range: float,
    dissimilarity: Any,
    direct: Any,
    cotangent: Any,
    objective: Any,
    window: int,
    sigma: float,
) -> None:
    """Check the arguments of `EnergyTerms.dssim`.

    Raises: ShapeError; ConfigError for a window that is even or not in [1, 511], or a data range or
        sigma that is not a finite number > 0.
    """
    where = "dssim"
    shape = _image(where, x)
    _array(where, "g", g, shape)
    _per_item(where, shape[0], scale=scale)
    outputs = {"objective": objective}
    _array(where, "objective", objective, shape[:1], np.float64, out=True)
    one_row = (shape[0], 1, *shape[2:])
    for name, array, expected in (
        ("dissimilarity", dissimilarity, one_row),
        ("direct", direct, shape),
        ("cotangent", cotangent, shape),
    ):
        if array is not None:
            _array(where, name, array, expected, out=True)
            outputs[name] = array
    _apart(where, outputs, {"x": x, "g": g, "scale": scale})
    _window(where, window)
    _positive(where, data_range=data_range, sigma=sigma)


def _window(where: str, window: Any) -> None:
    try:
        side = operator.index(window)
    except TypeError:
        side = 0
    if not (1 <= side <= LARGEST_WINDOW and side % 2 == 1):
        raise ConfigError(
            f"{where}: window must be an odd whole number from 1 to {LARGEST_WINDOW}, "
            f"found {window!r}."
        )


def _positive(where: str, **settings: float) -> None:
    for name, setting in settings.items():
        if not (setting > 0 and math.isfinite(setting)):
            raise ConfigError(f"{where}: {name} must be a finite number > 0, found {setting}.")
