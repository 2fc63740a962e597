"""The kinds of autoencoder that `train` makes and `export` knows; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AutoencoderKind:
    """One kind.

    Args:
        model: its name in a bundle, where the method tells it from generators.
        loss: reconstruction loss L_r that it is trained with and that its energy holds.
        variances: decoder variances it may have, the default first.
    """

    model: str
    loss: Literal["l2", "dssim", "gaussian"]
    variances: tuple[str, ...]


# By name of `train --model` and of checkpoints, where 'vae' is the generator of the RGI method.
AUTOENCODERS = {
    "l2ae": AutoencoderKind("l2ae", "l2", ("none",)),
    "dsae": AutoencoderKind("dsae", "dssim", ("none",)),
    "ae-vae": AutoencoderKind("vae", "l2", ("unit",)),
    "gamma-vae": AutoencoderKind("gamma-vae", "gaussian", ("global", "pixel")),
}
