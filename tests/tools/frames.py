"""Frames of a smooth part, and what is wrong with some."""

from __future__ import annotations

from typing import Any

import numpy as np

BOX = (slice(5, 9), slice(6, 11))


def part(rng: np.random.Generator, height: int = 16, width: int = 16, channels: int = 1) -> Any:
    """A smooth frame of levels 60 to 200, uint8, (H, W) or (H, W, 3)."""
    down = np.cos(np.pi * np.outer((np.arange(height) + 0.5) / height, np.arange(3)))
    across = np.cos(np.pi * np.outer((np.arange(width) + 0.5) / width, np.arange(3)))
    weights = rng.uniform(-1, 1, (channels, 3, 3))
    image = np.einsum("ia,cab,jb->ijc", down, weights, across)
    image = 130 + 60 * image / np.abs(image).max()
    return np.rint(image[:, :, 0] if channels == 1 else image).astype(np.uint8)


def damaged(frame: Any, box: Any = BOX) -> Any:
    """The frame with a white box."""
    made = frame.copy()
    made[box] = 255
    return made
