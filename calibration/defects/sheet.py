"""Look at synthetic defects: `python -m unblemish.calibration.defects.sheet IMAGES... OUT.png`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.calibration.defects.fills import FILLS
from unblemish.calibration.defects.paste import paste_defect
from unblemish.calibration.defects.shapes import SHAPES

_SIDE = 192


def contact_sheet(frames: Sequence[NDArray[Any]], seed: int = 0) -> NDArray[np.uint8]:
    """Draw, per frame and fill, one defect of every shape with its mask beneath.

    Args:
        frames: (H, W) or (H, W, 3), uint8.
    Returns: (rows * 2 * 192, 4 * 192, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    rows: list[NDArray[np.uint8]] = []
    for frame in frames:
        for fill in FILLS:
            made = [paste_defect(frame, rng, shape=shape, fill=fill) for shape in SHAPES]
            rows.append(np.hstack([_cell(defect.image) for defect in made]))
            rows.append(np.hstack([_cell(defect.mask.astype(np.uint8) * 255) for defect in made]))
    return np.vstack(rows)


def _cell(picture: NDArray[Any]) -> NDArray[np.uint8]:
    small = cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small if small.ndim == 3 else np.repeat(small[..., None], 3, axis=2))


def main(arguments: Sequence[str]) -> int:
    """Write the contact sheet of the images named; the last argument is the file to write."""
    from unblemish.images import read_image, write_image

    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    write_image(arguments[-1], contact_sheet([read_image(path) for path in arguments[:-1]]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
