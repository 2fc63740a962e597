"""What each method learns, from which graph, and how it becomes a bundle."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Mixture
from unblemish.calibration.features.cflow import FEW, FEW_MAPS, CflowFitter
from unblemish.calibration.features.extraction import fit_on_features
from unblemish.calibration.features.fitter import Advance, Fitted, Fitter
from unblemish.calibration.features.flow_training import Training
from unblemish.calibration.features.images import NormalImages
from unblemish.calibration.features.options import PADIM_CHANNELS, FitOptions
from unblemish.calibration.features.padim import PadimFitter, choose_channels
from unblemish.calibration.features.patchcore import LARGEST, PatchcoreFitter
from unblemish.calibration.seen import FITTED, digests
from unblemish.errors import MissingDependencyError
from unblemish.files import write_atomic

if TYPE_CHECKING:
    from unblemish.export.feature_graph import FeatureGraph
    from unblemish.export.models.flow import ConditionalFlow

# Section IV-A3: PaDiM stops below a decrease of 0.1, the others below 0.05, which is the default.
PADIM_DECREASE = 0.1
# Gaussian on the plain map, model px, where it is not the published 4. Mean of the best Dice per
# image of 134 real defects: 0.516 at 4, 0.535 at 3, 0.539 at 2, the image AUROC .834, .843, .846.
SMOOTHING = {"cflow": 2.0}
ONNX = ".onnx"  # how a network ends that is no file of weights


@dataclass(frozen=True)
class Made:
    """A fitted feature model and the graph it belongs to.

    Args:
        settings: of F2PAD, where they are not the defaults.
        flows: CFLOW-AD: of every map.
    """

    graph: FeatureGraph
    fitted: Fitted
    settings: Mapping[str, Any] = field(default_factory=dict)
    flows: tuple[ConditionalFlow, ...] = ()


def require_export() -> None:
    """Raise MissingDependencyError where a network cannot be exported."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("torch", "train", "fitting a detector") from error


def build_graph(options: FitOptions, camera: int, weights: Path) -> FeatureGraph:
    """The extractor of a method for images of `camera` channels.

    Raises: ModelError where the weights are missing, damaged or of another network; ConfigError
    where a setting does not fit the network.
    """
    from unblemish.export.feature_graph import feature_graph

    selected = _select(options, weights) if options.method == "padim" else None
    pool = options.pool if options.method == "patchcore" else 0
    if weights.suffix == ONNX:
        from unblemish.export.onnx_features import onnx_feature_graph

        return onnx_feature_graph(
            weights, options.layers, camera=camera, pool=pool, select=selected, size=options.size,
            mean=options.mean, std=options.std,
        )  # fmt: skip
    return feature_graph(
        weights,
        layers=options.layers,
        method=options.method,
        backbone=options.backbone,
        camera=camera,
        pool=pool,
        select=selected,
        size=options.size,
    )


def fit_method(
    options: FitOptions, images: NormalImages, weights: Path, advance: Advance | None = None
) -> Made:
    """Fit the method that the options name."""
    chosen, notes = _with_few_maps(options, len(images), weights)
    made = fit_graph(
        options, images, build_graph(chosen, images.preprocess.channels, weights), advance
    )
    return replace(made, fitted=replace(made.fitted, notes=made.fitted.notes + notes))


def fit_graph(
    options: FitOptions, images: NormalImages, graph: FeatureGraph, advance: Advance | None = None
) -> Made:
    """Fit the method that the options name on features of this graph."""
    fitter = _fitter(options, graph)
    with tempfile.TemporaryDirectory(prefix="unblemish-") as folder, _threads(options.threads):
        path = Path(folder) / "features.onnx"
        write_atomic(path, graph.model.SerializeToString())
        fitted = fit_on_features(fitter, images, path, threads=options.threads, advance=advance)
    settings = {"decrease": PADIM_DECREASE} if options.method == "padim" else {}
    flows = fitter.flows if isinstance(fitter, CflowFitter) else ()
    return Made(graph, fitted, settings, flows)


def write_bundle_of(
    made: Made,
    options: FitOptions,
    images: NormalImages,
    mixtures: Sequence[Mixture],
    weights: Path,
    out: Path,
    name: str,
    inpainter: Path | None = None,
) -> Bundle:
    """Write the bundle. Raises: BundleError; ModelError where the graphs fail their checks."""
    from unblemish.export.detector import write_detector_bundle

    return write_detector_bundle(
        out,
        graph=made.graph,
        method=options.method,
        statistics={**made.fitted.statistics, FITTED: digests(images.paths)},
        mixtures=mixtures,
        preprocess=images.preprocess.model_dump(),
        normals=len(images),
        seed=options.seed,
        source=weights,
        name=name,
        f2pad=made.settings,
        flows=made.flows,
        inpainter=inpainter,
        smoothing=SMOOTHING.get(options.method),
    )


def _with_few_maps(
    options: FitOptions, images: int, weights: Path
) -> tuple[FitOptions, tuple[str, ...]]:
    """CFLOW-AD of few images: the first two maps alone, unless the user named the layers.

    Source: seed 003, section IV-A3, 'to avoid overfitting'.
    """
    if options.method != "cflow" or options.layers is not None or images > FEW:
        return options, ()
    layers = _own_layers(options, weights)[:FEW_MAPS]
    note = f"of {images} images only the first {FEW_MAPS} maps are learned: {', '.join(layers)}."
    return replace(options, layers=layers), (note,)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Keep torch to so many threads inside the block, one unless the user says otherwise.

    Training takes small steps whose threads wait for each other: on two cores with other work a
    step took 0.07 s on one thread and 0.74 s on two.
    """
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or 1)
        yield
    finally:
        torch.set_num_threads(before)


def _fitter(options: FitOptions, graph: FeatureGraph) -> Fitter:
    if options.method == "cflow":
        return _cflow(options, graph)
    return _padim(options) if options.method == "padim" else _patchcore(options)


def _cflow(options: FitOptions, graph: FeatureGraph) -> CflowFitter:
    return CflowFitter(
        graph.maps,
        blocks=options.blocks,
        training=Training(options.steps, options.rate, options.noise, options.seed),
        minutes=options.minutes,
        seed=options.seed,
        memory=options.memory,
    )


def _select(options: FitOptions, weights: Path) -> list[int] | None:
    if options.selected == 0:
        return None
    layers = options.layers or _own_layers(options, weights)
    if weights.suffix == ONNX:
        from unblemish.export.onnx_layers import onnx_layers

        total = sum(onnx_layers(weights, layers, options.size).channels)
    else:
        from unblemish.export.feature_graph import concatenated_channels

        total = concatenated_channels(weights, layers, options.backbone)
    wanted = options.selected or min(PADIM_CHANNELS, total)
    return choose_channels(total, wanted, options.seed)


def _own_layers(options: FitOptions, weights: Path) -> tuple[str, ...]:
    """The method's own layers, finest first; of an .onnx file its outputs."""
    if weights.suffix == ONNX:
        from unblemish.export.onnx_layers import onnx_layers

        return onnx_layers(weights, None, options.size).names
    from unblemish.export.backbones.weights import default_layers, read_state, recognise

    backbone = options.backbone or recognise(read_state(weights), weights)
    return default_layers(backbone, options.method)


def _padim(options: FitOptions) -> PadimFitter:
    return PadimFitter(
        shrinkage=options.shrinkage,
        epsilon=options.epsilon,
        rank=options.rank,
        memory=options.memory,
    )


def _patchcore(options: FitOptions) -> PatchcoreFitter:
    return PatchcoreFitter(
        share=options.share,
        largest=options.bank or LARGEST,
        seed=options.seed,
        memory=options.memory,
    )
