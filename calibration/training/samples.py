"""The sample grid beside a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from unblemish.images import write_image


def write_grid(path: Path, rows: Sequence[Tensor]) -> None:
    """Write rows of images, (columns, C, size, size) in [-1, 1] each, as one PNG."""
    bands = [np.concatenate(list(row.numpy().transpose(0, 2, 3, 1)), axis=1) for row in rows]
    grid = np.concatenate(bands, axis=0)
    pixels = np.rint(np.clip(grid * 0.5 + 0.5, 0.0, 1.0) * 255).astype(np.uint8)
    write_image(path, pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
