"""How to search: everything a caller may set without touching the bundle."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unblemish.errors import ConfigError
from unblemish.runtime.backends.protocol import Backend

GENERATOR_REFINEMENTS = ("rgi", "rrgi", "none", "l2", "l1", "anogan")
DETECTOR_REFINEMENTS = ("f2pad", "initial", "none")
AUTOENCODER_REFINEMENTS = (
    "energy",
    "none",
    "latent",
    "error",
    "gradient",
    "gradient-error",
    "kl",
    "kl-error",
)
REFINEMENTS = tuple(
    dict.fromkeys((*GENERATOR_REFINEMENTS, *DETECTOR_REFINEMENTS, *AUTOENCODER_REFINEMENTS))
)
SCHEDULES = ("fast", "paper")


@dataclass(frozen=True)
class SearchOptions:
    """How to search; None means what the bundle says.

    Args:
        backend, threads: see `open_backend`.
        refine: with a generator 'rgi'; 'rrgi' (the weights free for the last steps); 'none' (the
            first pass alone); 'l2' or 'l1' (inversion without a mask, the baselines) or 'anogan'
            (l1 and the discriminator's features, see `FeatureDistance`). With a
            detector 'f2pad' (mask and restored image are searched), 'initial' (outlines by a first
            guess of the normal image) or 'none' (the detector's own map). With an autoencoder
            'energy' (the nearest image that it reconstructs well), 'none' (its reconstruction),
            'latent' (the code is searched, see `LatentMethod`), or a map of one pass, see
            `score_maps`. None for what the bundle was calibrated for, else the first.
        schedule: 'fast', or 'paper': Adam with rate 0.1 on z and M for 2,000 steps (AnoGAN: on z
            from one random latent, 500).
        max_steps: steps per tile.
        white: intensity of white in the frames; None for the bundle's, else that of their dtype.
    """

    backend: str | Backend = "auto"
    threads: int | None = None
    refine: str | None = None
    schedule: str = "fast"
    max_steps: int | None = None
    white: float | None = None

    def __post_init__(self) -> None:
        if self.refine not in (None, *REFINEMENTS):
            raise ConfigError(
                f"refine must be one of {', '.join(REFINEMENTS)}; got '{self.refine}'."
            )
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule must be 'fast' or 'paper'; got '{self.schedule}'.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1; got {self.max_steps}.")
        if self.white is not None and not 0 < self.white < math.inf:
            raise ConfigError(
                f"white, the intensity of white, must be a positive number; got {self.white}."
            )


def check_refine(refine: str, choices: tuple[str, ...], method: str) -> str:
    """The refinement asked for. Raises: ConfigError where bundles of that method have it not."""
    if refine not in choices:
        raise ConfigError(
            f"a bundle of method '{method}' knows refine={', '.join(choices)}; got '{refine}'."
        )
    return refine
