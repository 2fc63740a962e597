"""Small variations that a normal part may show. Nothing here may look like a defect.

Shifts are whole pixels, because interpolation would teach that blurred images are normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 0.03  # largest shift, share of the side
ROTATION = 2.0  # largest rotation, degrees
BRIGHTNESS = 0.06  # largest offset, share of the range
CONTRAST = 0.06  # largest change of gain


def augment(images: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Vary each image of a batch on its own.

    Args:
        images: (batch, C, size, size) in [-1, 1].
        names: shift, rotate, brightness, hflip, vflip.
    Returns: a new tensor of the same shape, clipped to [-1, 1].
    """
    count = images.shape[0]

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * limit

    out = images
    if "hflip" in names:
        out = torch.where((uniform(1.0) > 0)[:, None, None, None], out.flip(3), out)
    if "vflip" in names:
        out = torch.where((uniform(1.0) > 0)[:, None, None, None], out.flip(2), out)
    if "rotate" in names:
        out = _rotate(out, uniform(math.radians(ROTATION)))
    if "shift" in names:
        limit = SHIFT * images.shape[-1]
        out = _shift(out, uniform(limit).round().long(), uniform(limit).round().long())
    if "brightness" in names:
        gain = (1 + uniform(CONTRAST))[:, None, None, None]
        out = out * gain + (2 * uniform(BRIGHTNESS))[:, None, None, None]
    return out.clamp(-1.0, 1.0)


def _shift(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows = (torch.arange(height)[None] - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width)[None] - right[:, None]).clamp(0, width - 1)
    item = torch.arange(images.shape[0])[:, None, None]
    # Advanced indices around a slice bring the channel last.
    return images[item, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _rotate(images: Tensor, angle: Tensor) -> Tensor:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], 1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, "bicubic", "border", align_corners=False)
