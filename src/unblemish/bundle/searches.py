"""Settings of the searches, as a manifest holds them."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field

from unblemish.bundle.record import Positive, Record

Polarity = Literal["both", "dark", "bright"]


class RgiSettings(Record):
    """The solver's settings; `lam` is in model intensity squared, for the mean-scaled objective."""

    loss: Literal["l2", "l1"] = "l2"
    mask: Literal["shared", "element"] = "shared"
    lam: Positive = 0.1
    polarity: Polarity = Field(
        "both", description="which differences count as score: dark, where the frame is darker"
    )
    start: Literal["encoder", "random", "zero"] = "random"
    candidates: int = Field(64, gt=0, description="random latents tried in one batch")
    max_steps: int = Field(100, gt=0)
    tolerance: float = Field(1e-4, ge=0)
    discriminator_weight: float = Field(0.0, ge=0)
    feature_weight: float = Field(0.0, ge=0)
    latent_weight: float = Field(0.0, ge=0, description="weight of mean z^2")
    anogan_weight: Positive = Field(
        0.1, description="of the discriminator's features beside the residual, seed 002, eq. 2"
    )
    finetune_steps: int = Field(
        0, ge=0, description="R-RGI: steps with the weights free; 0 is plain RGI"
    )
    finetune_lr: Positive = 1e-4


class F2padSettings(Record):
    """Settings of F2PAD; intensities count in `unit`s, near ImageNet's standard deviation.

    Source: seed 003, section IV-A3. The paper's value is the default where it states one.
    """

    unit: Positive = Field(0.226, description="[0, 1] intensity that counts as 1")
    alpha1: float = Field(0.01, ge=0, description="weight of the pixel prior, eq. 10")
    alpha2: float = Field(1e-4, ge=0, description="weight of the total variation, eq. 11")
    beta0: float = Field(
        1e5, ge=0, description="weight of the LOG penalty times the defect's size, eq. 8"
    )
    balance: Positive = Field(
        2.0,
        description="fast schedule, in place of beta0: what flagging the whole initial mask costs, "
        "as a share of what it brings in anomaly scores",
    )
    prior_strength: float = Field(
        1.0,
        ge=0,
        description="fast schedule, in place of alpha1: 1 flags colours that 1 normal in 1000 has",
    )
    beta: Positive = Field(
        0.05,
        description="fast schedule: what a flagged model pixel costs, in usual levels of cells",
    )
    components: int = Field(2, ge=0, description="which of the detector's mixtures")
    epsilon: Positive = Field(1e-4, description="eq. 8")
    step_size: Positive = Field(1.0, description="gamma_0 of eq. 15")
    radius: int = Field(5, ge=0, le=15, description="k_s of eq. 13")
    sigma_space: Positive = Field(1.1, description="sigma_0 of eq. 14, px^2")
    sigma_colour: Positive = Field(3.0, description="sigma_1 of eq. 14, units^2")
    clip: Positive = Field(0.03, description="largest component of the shared gradient")
    candidates: int = Field(50, gt=0, description="PatchCore: nearest of so many, eq. 5")
    dilation: int = Field(8, ge=0, description="around the initial mask, model px")
    decrease: Positive = Field(
        0.05, description="stop below so small a decrease of the objective (PaDiM: 0.1)"
    )
    max_steps: int = Field(1200, gt=0)
    tolerance: Positive = Field(0.4, description="a_ij counts as zero up to this norm, in units")
    outline_floor: float = Field(
        1.0, ge=0, description="share of the detector's own map in the score, see `outline_score`"
    )
    outline_onset: float = Field(
        2.0, ge=0, description="deviations from the restored image that count as noise"
    )


class EnergySettings(Record):
    """Settings of the energy projection: minimise L_r(x) + lam * |x - x_0|_1 over the image.

    L_r of an image x and its reconstruction y, sums over all elements or, of DSSIM, pixels:
    l2: (x - y)^2; dssim: (1 - SSIM(x, y)) / 2; gaussian: (x - y)^2 / (2 g^2) + log g, where g is
    `gamma` or, where the graph gives log_scale, its exponential. Intensities are the model's.
    Source: seed 002, eqs. 4, 5, 8, sections 3.5 and 4.1. The paper's value is the default where it
    states one.
    """

    loss: Literal["l2", "dssim", "gaussian"] = Field("l2", description="L_r, as in training")
    gamma: Positive | None = Field(
        None, description="learned standard deviation of the decoder, where it has one for all"
    )
    typical_gamma: Positive | None = Field(
        None, description="where it has one for every element, that of the mean of 1 / g^2"
    )
    lam: float = Field(0.05, ge=0, description="weight of the l1 distance to the frame, eq. 4")
    alpha: Positive = Field(0.5, description="step size, eq. 5")
    step: Literal["tuned", "plain"] = Field(
        "tuned", description="tuned: gradient times squared reconstruction error, eq. 8"
    )
    optimiser: Literal["gradient", "adam"] = "gradient"
    latent_lam: Positive = Field(
        0.05, description="weight of -log p(z) beside |x - Dec(z)|_1, eq. 6, where z is searched"
    )
    max_steps: int = Field(200, gt=0)
    tolerance: float = Field(1e-4, ge=0, description="relative decrease of the energy to stop at")
    stop_quantile: float = Field(
        0.0, ge=0, le=1, description="of the training losses, where the search stops; 0: smallest"
    )
    training_losses: tuple[tuple[float, float], ...] = Field(
        (), description="(share, L_r that this share of the training images does not exceed)"
    )
    score: Literal["dssim", "l2"] = Field(
        "dssim", description="what the frame and its projection are compared by"
    )

    @property
    def precision(self) -> float:
        """What L_r multiplies squared errors with; of a variance per element, on average."""
        gamma = self.gamma or self.typical_gamma
        return 1.0 if gamma is None else 0.5 / gamma**2

    @property
    def stop_loss(self) -> float | None:
        """L_r at `stop_quantile`, between those known linearly; None where none is known."""
        known = self.training_losses
        if not known:
            return None
        for (share, loss), (later, larger) in pairwise(known):
            if share <= self.stop_quantile <= later and later > share:
                part = (self.stop_quantile - share) / (later - share)
                return loss + part * (larger - loss)
        return known[0][1] if self.stop_quantile <= known[0][0] else known[-1][1]
