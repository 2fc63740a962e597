"""What a synthetic defect is filled with, and the contrast that makes its mask true."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.searches import Polarity
from unblemish.errors import ConfigError, ShapeError

Fill = Literal["random", "mean"]
FILLS: tuple[Fill, ...] = get_args(Fill)


def white_of(frame: NDArray[Any]) -> float:
    """Intensity of white: 255, 65535, or 1 for floating frames.

    Raises: ShapeError where the frame is not (H, W) or (H, W, C) of uint8, uint16 or a float type.
    """
    if frame.ndim not in (2, 3) or frame.size == 0:
        raise ShapeError(
            f"a frame must be (H, W) or (H, W, C) and not empty; found shape {frame.shape}."
        )
    if frame.dtype == np.uint8 or frame.dtype == np.uint16:
        return float(np.iinfo(frame.dtype).max)
    if np.issubdtype(frame.dtype, np.floating):
        return 1.0
    raise ShapeError(f"a frame must be uint8, uint16 or floating; found {frame.dtype}.")


def fill_colour(
    fill: Fill,
    pixels: NDArray[np.float64],
    white: float,
    rng: np.random.Generator,
    polarity: Polarity = "both",
) -> NDArray[np.float64]:
    """Colour of a defect.

    Args:
        fill: 'random' (uniform between black and white, seed 003, below eq. 16) or 'mean' (the mean
            of the covered pixels, seed 000, appendix F).
        pixels: covered pixels, (n, C).
        polarity: 'dark' draws below the mean of the covered pixels, 'bright' above.
    Returns: (C,).
    Raises: ConfigError where the fill is unknown.
    """
    mean = np.asarray(pixels.mean(axis=0))
    if fill == "random":
        low = mean if polarity == "bright" else 0.0
        high = mean if polarity == "dark" else white
        return np.asarray(rng.uniform(low, high, pixels.shape[1]))
    if fill == "mean":
        return mean
    raise ConfigError(f"unknown defect fill '{fill}'; choose one of {', '.join(FILLS)}.")


def with_contrast(
    colour: NDArray[np.float64],
    pixels: NDArray[np.float64],
    contrast: float,
    white: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Paint `pixels` with `colour`, and move those that would stay too close to what they were.

    A pixel is too close where no channel changes by `contrast`; it becomes its original plus or
    minus `contrast` in every channel. The sign is that of colour minus mean pixel (random where
    they agree), one for the whole defect, turned round where the pixel has no room on that side.

    Args:
        pixels: original pixels, (n, C).
        contrast: smallest change, same unit as the pixels, below half of `white`.
    Returns: new pixels, (n, C), within [0, white].
    Source: seed 003, below eq. 16, which multiplies by a factor; an offset also lifts black pixels.
    """
    painted = np.broadcast_to(colour, pixels.shape).copy()
    close = np.abs(painted - pixels).max(axis=1) < contrast
    offset = float((colour - pixels.mean(axis=0)).sum())
    brighter = offset > 0 if abs(offset) > 1e-3 * white else bool(rng.integers(2))
    original = pixels[close]
    up = np.clip(original + contrast, 0, white)
    down = np.clip(original - contrast, 0, white)
    preferred, other = (up, down) if brighter else (down, up)
    has_room = np.abs(preferred - original).max(axis=1, initial=0.0) >= contrast * (1 - 1e-9)
    painted[close] = np.where(has_room[:, None], preferred, other)
    return painted


def with_polarity(
    colour: NDArray[np.float64],
    pixels: NDArray[np.float64],
    contrast: float,
    white: float,
    polarity: Polarity,
) -> NDArray[np.float64]:
    """Paint `pixels` with `colour`, every one darker ('dark') or brighter than it was.

    Each channel changes by `contrast` at least, or to black (white) where it has less room.
    Arguments and result as in `with_contrast`.
    """
    if polarity == "dark":
        return np.maximum(np.minimum(colour, pixels - contrast), 0.0)
    return np.minimum(np.maximum(colour, pixels + contrast), white)
