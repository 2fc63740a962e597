"""What every feature model is to `fit`: it is fed features and gives the arrays of the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import CalibrationError

Float = NDArray[np.float32]
Advance = Callable[[str, int, int], None]  # stage, done, total

MEMORY = 2 << 30  # bytes that a fitter may hold; what is more goes to a temporary file
FEWEST_IMAGES = 2


@dataclass(frozen=True)
class Fitted:
    """What a fitter learned.

    Args:
        statistics: name -> array, written as `statistics/<name>.npy` of the bundle.
        facts: (what, value) for people.
        notes: what a user should know, one sentence each.
    """

    statistics: dict[str, NDArray[Any]]
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())


class Fitter(Protocol):
    """A feature model that is fitted image by image, in bounded memory."""

    def update(self, features: Float) -> None:
        """Take the features of some images, (batch, h, w, c) float32, channels last."""
        ...

    def finish(self, advance: Advance | None = None) -> Fitted:
        """Fit. Raises: CalibrationError where there were too few images."""
        ...

    def close(self) -> None:
        """Let go of temporary files. May be called twice."""
        ...


def size_text(size: int) -> str:
    """Bytes for people: 1.2 GB, 340 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def check_images(count: int, method: str) -> None:
    """Raise CalibrationError where `count` images are too few for `method`."""
    if count < FEWEST_IMAGES:
        found = "none was" if count == 0 else "one was"
        raise CalibrationError(
            f"{method} learns how normal parts vary, which takes {FEWEST_IMAGES} normal images at "
            f"the very least; {found} usable. Sixteen give a first result, a hundred a good one."
        )
