"""Blind inpainting: what the search changed by much is a hole, and is filled as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.found import Found
from unblemish.runtime.frames import to_channels, to_unit
from unblemish.runtime.solvers.protocol import Bool

_CHANGED = 0.1  # of white: a smaller change is the model's own error
_MOST = 0.5  # of the frame: where more has changed, the model does not know such images


@dataclass(frozen=True)
class Restored:
    """A frame as a normal part would look.

    Args:
        image: as the frame, which stays bit by bit outside of the hole where there is one.
        hole: (H, W), what was taken for foreign and filled; empty where `image` is that of `found`.
        found: the search that found the hole.
    """

    image: NDArray[Any]
    hole: Bool
    found: Found


def changed_by_much(frame: Any, found: Found, white: float | None) -> Bool:
    """Pixels (H, W) that a search changed by more than a tenth of white, and those between them.

    A search that holds on to the frame by an l1 distance shrinks every change a little, and leaves
    a shadow of what it removes; as a hole it has no say.
    Returns: all False where nothing changed so much, or more than half of the frame did.
    """
    before, after = to_unit(frame, white=white), to_unit(found.restored, white=white)
    channels = min(before.shape[2], after.shape[2])
    apart = np.abs(to_channels(before, channels) - to_channels(after, channels)).max(axis=2)
    changed = (apart > _CHANGED).astype(np.uint8)
    closed = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
    return np.asarray(closed if closed.mean() <= _MOST else np.zeros_like(closed))
