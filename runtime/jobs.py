"""A frame on its way through a search, and the checks of what a caller may limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.errors import ConfigError
from unblemish.runtime.frames import to_channels, to_unit, white_for
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.solvers.protocol import Float


@dataclass(frozen=True)
class Job:
    """One frame: as given, as (H, W, C) in [0, 1] with the model's channels, its model images."""

    frame: NDArray[Any]
    unit: Float
    images: Float
    white: float | None


def prepare_job(frame: Any, geometry: Geometry, white: float | None) -> Job:
    """Bring a frame to the model.

    Args:
        white: asked for by the caller; None for the bundle's, else that of the frame's dtype.
    Raises: SourceError where the frame is not usable (see `to_unit`).
    """
    preprocess = geometry.preprocess
    chosen = white_for(frame, white, preprocess.white)
    unit = to_unit(frame, white=chosen)
    images = geometry.images_of(frame, unit, chosen)
    return Job(frame, to_channels(unit, preprocess.channels), images, chosen)


def check_search(lam: float | None, deadline_ms: float | None) -> None:
    """Raises: ConfigError where one of them is given and not a positive number."""
    if deadline_ms is not None and not deadline_ms > 0:
        raise ConfigError(f"deadline_ms must be positive; got {deadline_ms}.")
    if lam is not None and not (np.isfinite(lam) and lam > 0):
        raise ConfigError(f"lam must be a positive number; got {lam}.")


def milliseconds(watched: Mapping[str, float], **stages: float) -> dict[str, float]:
    """Timings of an inspection from seconds: those of a stopwatch, and those of its stages."""
    return {name: 1000 * seconds for name, seconds in {**watched, **stages}.items()}
