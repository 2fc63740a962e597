"""The manifest: everything a bundle says about itself, as one checked record."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]
Polarity = Literal["both", "dark", "bright"]

GraphRole = Literal[
    "generator",  # z -> image, plain
    "generator_forward",  # z -> image + kept tensors
    "generator_backward",  # kept tensors + ct_image -> grad_z
    "encoder",  # image -> z (start value)
    "discriminator_forward",
    "discriminator_backward",
    "features_forward",
    "features_backward",
    "finetune_forward",  # z + weights -> image + kept tensors
    "finetune_backward",  # -> grad_z + grad_<weight>
]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tensor(_Record):
    """One input or output of a graph. `role` says what it is to the runtime."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    role: Literal["latent", "image", "kept", "cotangent", "gradient", "weight", "feature", "logit"]


class Graph(_Record):
    """One ONNX file of the bundle."""

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    flops: int = Field(ge=0, description="multiply and add counted separately, batch 1")


class Model(_Record):
    """Where the generator comes from and how large it is."""

    kind: str = Field(description="vae, pggan, onnx, ...")
    latent_size: int = Field(gt=0)
    parameters: int = Field(ge=0)
    source: str = Field(description="file name of the checkpoint or ONNX file")
    source_sha256: Sha256


class Preprocess(_Record):
    """From a camera frame to the model's input, and the way back.

    `stretch` resizes the whole frame; `letterbox` keeps the aspect and pads by replication;
    `tiles` covers the frame with overlapping windows of the model's size after scaling by `scale`.
    """

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    channels: Literal[1, 3]
    low: float = Field(description="model intensity of black")
    high: float = Field(description="model intensity of white")
    white: Positive | None = Field(
        None, description="intensity of white in integer frames; None: the largest of their dtype"
    )
    geometry: Literal["stretch", "letterbox", "tiles"] = "stretch"
    scale: Positive = Field(1.0, description="tiles only: model pixels per native pixel")
    overlap: float = Field(0.25, ge=0, lt=0.9, description="tiles only: share of a tile's side")


class RgiSettings(_Record):
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
    finetune_steps: int = Field(
        0, ge=0, description="R-RGI: steps with the weights free; 0 is plain RGI"
    )
    finetune_lr: Positive = 1e-4


class Calibration(_Record):
    """What was learned from held-back normal images. Thresholds live here, never in a graph."""

    pixel_threshold: Positive
    image_threshold: float
    smoothing_sigma: float = Field(0.0, ge=0, description="Gaussian on the score map, native px")
    open_radius: int = Field(0, ge=0, description="morphological opening, native px")
    min_area: int = Field(0, ge=0, description="smaller regions are dropped, native px")
    false_reject_rate: float = Field(ge=0, le=1)
    observed_false_reject_rate: float | None = Field(
        None, ge=0, le=1, description="share of the normals used that the verdict rejects"
    )
    threshold_method: Literal["quantile", "tail"] | None = Field(
        None, description="tail: extrapolated beyond what that many normals show"
    )
    image_sigma: float | None = Field(
        None, ge=0, description="Gaussian before the image score; None: smoothing_sigma"
    )
    region_threshold: float = Field(
        0.0, ge=0, description="regions whose largest score is not above are dropped"
    )
    level: tuple[Positive, Positive] | None = Field(
        None, description="median score of normal frames, typical and largest"
    )
    weight_file: str | None = Field(
        None, description="npy of per-pixel score weights at the model's size"
    )
    frame_sizes: tuple[tuple[int, int], tuple[int, int]] | None = Field(
        None, description="smallest and largest (height, width) of the normals used, native px"
    )
    refine: str | None = Field(None, description="the search that the thresholds belong to")
    normals: int = Field(gt=0)
    synthetic: int = Field(0, ge=0, description="synthetic defects that chose the settings")
    seed: int
    dice: float | None = Field(None, description="mean Dice of the synthetic defects")
    detection_rate: float | None = Field(
        None, ge=0, le=1, description="share of the synthetic defects with verdict fail"
    )
    curve: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="lambda (as text) -> (Dice mean, Dice std), appendix J"
    )


class FileRecord(_Record):
    """Size and hash of one file of the bundle, the manifest itself excepted."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class Manifest(_Record):
    """`manifest.json` of a bundle."""

    schema_version: Literal[1] = 1
    name: str
    created_by: str = Field(description="unblemish version that wrote it")
    method: Literal["rgi"] = "rgi"
    model: Model
    graphs: dict[GraphRole, Graph]
    finetune_weights: str | None = Field(
        None, description="npz of the initial weights, R-RGI without torch"
    )
    preprocess: Preprocess
    rgi: RgiSettings = RgiSettings()
    calibration: Calibration | None = None
    millimetres_per_pixel: Positive | None = None
    parity: dict[str, float] = Field(
        default_factory=dict, description="largest differences seen at export"
    )
    files: dict[str, FileRecord]
