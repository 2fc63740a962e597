"""Truth masks in the MVTec AD layout."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.errors import SourceError

NORMAL = "good"


def category_of(image_path: str | os.PathLike[str]) -> str:
    """Category of an image: the name of its folder; 'good' is normal."""
    return Path(image_path).resolve().parent.name


def find_truth(
    truth_dir: str | os.PathLike[str], image_path: str | os.PathLike[str]
) -> Path | None:
    """Path of an image's truth mask: `<truth_dir>/<category>/<name>_mask.png`.

    Returns: None for images of the folder 'good', which are normal.
    Raises: SourceError where a defective image has no mask.
    """
    category = category_of(image_path)
    if category == NORMAL:
        return None
    path = Path(truth_dir) / category / f"{Path(image_path).stem}_mask.png"
    if not path.is_file():
        raise SourceError(
            f"no truth mask for {image_path}: expected {path}. "
            "The layout is <defect>/<name>_mask.png; "
            f"normal images lie in a folder named '{NORMAL}'."
        )
    return path


def read_truth(
    truth_dir: str | os.PathLike[str], image_path: str | os.PathLike[str]
) -> NDArray[np.bool_] | None:
    """Read an image's truth mask, (H, W) bool; None for normal images.

    Raises: SourceError where the mask is missing or cannot be decoded.
    """
    path = find_truth(truth_dir, image_path)
    if path is None:
        return None
    mask = (
        cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
        if path.stat().st_size
        else None
    )
    if mask is None:
        raise SourceError(f"truth mask {path} cannot be decoded: expected a PNG image.")
    return np.asarray(mask > 0)
