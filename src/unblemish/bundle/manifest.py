"""The manifest: everything a bundle says about itself, as one checked record."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from unblemish.bundle.record import Positive, Record
from unblemish.bundle.searches import EnergySettings, F2padSettings, RgiSettings

SCHEMA_VERSION = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Method = Literal["rgi", "patchcore", "padim", "cflow", "energy"]

GraphRole = Literal[
    "generator",  # z -> image, plain
    "generator_forward",  # z -> image + kept tensors
    "generator_backward",  # kept tensors + ct_image -> grad_z
    "encoder",  # image -> z (start value)
    "discriminator_forward",
    "discriminator_backward",
    "discriminator_features_forward",  # image -> a layer of the discriminator + kept (AnoGAN)
    "discriminator_features_backward",
    "features",  # image -> features, plain (PatchCore, PaDiM, CFLOW-AD)
    "features_forward",  # image -> features + kept tensors
    "features_backward",
    "flow",  # features and places -> log-likelihoods, plain (CFLOW-AD)
    "flow_forward",
    "flow_backward",
    "inpainter",  # image and mask -> image restored, the user's own, where F2PAD's search starts
    "reconstruct",  # image -> reconstruction (VAEs: mean, log_variance; log_scale), plain
    "reconstruct_forward",  # the same + kept tensors
    "reconstruct_backward",  # kept tensors + ct_<output> -> grad_image
    "finetune_forward",  # z + weights -> image + kept tensors
    "finetune_backward",  # -> grad_z + grad_<weight>
]


class Tensor(Record):
    """One input or output of a graph. `role` says what it is to the runtime."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    role: Literal[
        "latent",
        "image",
        "kept",
        "cotangent",
        "gradient",
        "weight",
        "feature",  # of a detector: (batch, h, w, c), channels last
        "position",  # row or column of every cell, (cells,), an input of CFLOW-AD's flow
        "likelihood",  # log-likelihood of every cell, (cells,), an output of it
        "logit",
        "reconstruction",  # an autoencoder's, as its input
        "moment",  # mean or log_variance of a VAE's code, (batch, latent)
        "scale",  # log of the standard deviation of every element, as the reconstruction
        "mask",  # (batch, 1, h, w), 1 in the hole, an input of the inpainter
    ]


class Graph(Record):
    """One ONNX file of the bundle."""

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    flops: int = Field(ge=0, description="multiply and add counted separately, batch 1")


class Model(Record):
    """Where the network comes from and how large it is."""

    kind: str = Field(description="vae, pggan, resnet18, onnx, ...")
    latent_size: int = Field(ge=0, description="0 for a feature extractor, which has no latent")
    parameters: int = Field(ge=0)
    source: str = Field(description="file name of the checkpoint or ONNX file")
    source_sha256: Sha256


class Preprocess(Record):
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


class Mixture(Record):
    """Gaussians of the pixel prior, in [0, 1] intensity: (Q, C) means and (Q, C, C) precisions."""

    means: tuple[tuple[float, ...], ...]
    precisions: tuple[tuple[tuple[float, ...], ...], ...]
    weights: tuple[float, ...] = Field(description="shares of the pixels; eq. 10 leaves them out")
    level: Positive | None = Field(
        None, description="squared distance that no normal frame's colours reach; by calibration"
    )


class FeatureMap(Record):
    """One layer's share of a feature vector."""

    channels: int = Field(gt=0, description="they follow those of the layer before")
    stride: int = Field(gt=0, description="model pixels per cell of its own; repeated if coarser")


class Crossed(Record):
    """How far the fitted images reach where a detector has not seen them, see `cross_fit`."""

    peaks: tuple[float, ...] = Field(min_length=1, description="largest value of the plain map")
    levels: tuple[float, ...] = Field(
        min_length=1, description="score that 1 in 20 cells exceeds; of the same images"
    )
    folds: int = Field(ge=2, description="fits without one part of the images each")


class Detector(Record):
    """What PatchCore, PaDiM or CFLOW-AD learned of normal features.

    The graphs `features*` take images of the model's intensity of any height and width that are
    multiples of `align`, and give cells of `stride` model pixels a side.
    """

    backbone: str = Field(description="resnet18, ..., or 'onnx'")
    layers: tuple[str, ...]
    stride: int = Field(gt=0, description="model pixels per cell of the (finest) score map")
    align: int = Field(gt=0, description="sizes and offsets of crops are multiples of it, px")
    reach: int = Field(
        gt=0, description="model pixels around a pixel whose cells it moves noticeably"
    )
    channels: int = Field(gt=0, description="length of a feature vector")
    maps: tuple[FeatureMap, ...] = Field((), description="the layers apart, where a method is so")
    statistics: dict[str, str] = Field(
        description="array -> npy file of the bundle; 'fitted': digests of the images fitted"
    )
    mixtures: tuple[Mixture, ...] = Field((), description="pixel priors, by number of Gaussians")
    normals: int = Field(gt=0, description="images fitted")
    seed: int
    crossed: Crossed | None = None
    smoothing_sigma: float = Field(4.0, ge=0, description="Gaussian on the plain map, model px")
    mask_threshold: Positive | None = Field(
        None, description="initial mask: plain map above it; set by calibration"
    )
    cell_level: Positive | None = Field(
        None, description="score that 1 in 20 cells of normal frames exceeds; by calibration"
    )
    normal_peak: Positive | None = Field(
        None, description="largest value of the plain map usual in normal frames; by calibration"
    )


class Calibration(Record):
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
    by_evidence: bool = Field(
        True,
        description="the verdict goes by the detector's own peak, where there is a detector; else "
        "by the score map's",
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


class FileRecord(Record):
    """Size and hash of one file of the bundle, the manifest itself excepted."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class EngineRecord(Record):
    """A TensorRT engine of one graph, locked to what it was built on unless built otherwise.

    A graph that takes images of any size has an engine for each of a few sizes.
    """

    file: str
    role: GraphRole
    graph_sha256: Sha256 = Field(description="of the graph with its weights, see `graph_digest`")
    tensorrt: str = Field(pattern=r"^\d+(\.\d+)+", description="full version of the library")
    capability: str = Field(pattern=r"^\d+\.\d+$", description="compute capability of the chip")
    system: str = Field(description="operating system and processor, such as linux-aarch64")
    size: tuple[int, int] | None = Field(
        None, description="(height, width) of its images; None: the graph states one"
    )
    version_compatible: bool = Field(
        False, description="later versions of the same major number load it too"
    )
    hardware: Literal["none", "ampere+", "same-capability"] = Field(
        "none", description="other chips that run it"
    )
    parity: float | None = Field(
        None, ge=0, description="relative difference to ONNX Runtime in float32, when built"
    )


class Manifest(Record):
    """`manifest.json` of a bundle."""

    schema_version: Literal[1] = 1
    name: str
    created_by: str = Field(description="unblemish version that wrote it")
    method: Method = "rgi"
    precision: Precision = Field("fp32", description="of the heavy operators of the graphs")
    model: Model
    graphs: dict[GraphRole, Graph]
    finetune_weights: str | None = Field(
        None, description="npz of the initial weights, R-RGI without torch"
    )
    preprocess: Preprocess
    rgi: RgiSettings = RgiSettings()
    detector: Detector | None = None
    f2pad: F2padSettings = F2padSettings()
    energy: EnergySettings | None = Field(None, description="of the method 'energy' alone")
    calibration: Calibration | None = None
    millimetres_per_pixel: Positive | None = None
    engines: tuple[EngineRecord, ...] = Field((), description="of devices, beside the graphs")
    parity: dict[str, float] = Field(
        default_factory=dict, description="largest differences seen at export"
    )
    files: dict[str, FileRecord]
