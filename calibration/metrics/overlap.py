"""Overlap of two masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ShapeError

Mask = NDArray[np.bool_]


def dice(mask: NDArray[Any], truth: NDArray[Any]) -> float | None:
    """2 |mask and truth| / (|mask| + |truth|); None where both are empty.

    Args:
        mask, truth: same shape; bool, or numbers of which all but 0 count as defect.
    Raises: ShapeError where the shapes differ.
    Source: seed 000, section 4.2; seed 003, eq. 17.
    """
    both, either = _counts(mask, truth)
    return 2 * both / (both + either) if either else None


def iou(mask: NDArray[Any], truth: NDArray[Any]) -> float | None:
    """|mask and truth| / |mask or truth|; None where both are empty. Arguments as in `dice`.

    Source: seed 003, eq. 17.
    """
    both, either = _counts(mask, truth)
    return both / either if either else None


def _counts(mask: NDArray[Any], truth: NDArray[Any]) -> tuple[int, int]:
    check_same_shape(mask, truth)
    first, second = mask.astype(np.bool_, copy=False), truth.astype(np.bool_, copy=False)
    return int(np.count_nonzero(first & second)), int(np.count_nonzero(first | second))


def check_same_shape(found: NDArray[Any], truth: NDArray[Any]) -> None:
    """Raise ShapeError where a map and its truth are not equally large."""
    if found.shape != truth.shape:
        raise ShapeError(
            f"a map of {found.shape} cannot be compared with a truth mask of {truth.shape}. "
            "Give the mask of this image, in the image's own size."
        )
