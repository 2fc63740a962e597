"""From a folder of normal images and the weights of a network to a bundle that detects."""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from unblemish.bundle import Bundle, write_bundle
from unblemish.bundle.manifest import Crossed, Mixture
from unblemish.calibration.features.assembly import (
    ONNX,
    fit_method,
    require_export,
    write_bundle_of,
)
from unblemish.calibration.features.cross import cross_fit, fold_count
from unblemish.calibration.features.fitter import Advance, Fitted, check_images
from unblemish.calibration.features.images import NormalImages, open_images
from unblemish.calibration.features.options import FitOptions
from unblemish.calibration.features.pixels import PixelSampler, fit_mixtures
from unblemish.errors import ConfigError, ModelError

TITLES = {"patchcore": "PatchCore", "padim": "PaDiM", "cflow": "CFLOW-AD"}


@dataclass(frozen=True)
class FitReport:
    """What a fit made.

    Args:
        bundle: the bundle written.
        images: what was read, fitted, held back and set aside.
        facts: (what, value) for people; `notes` what a user should know.
        seconds: stage -> time.
    """

    bundle: Bundle
    images: NormalImages
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]


def fit(
    options: FitOptions,
    normals: Path,
    weights: Path,
    out: Path,
    *,
    name: str | None = None,
    inpainter: Path | None = None,
    advance: Advance | None = None,
) -> FitReport:
    """Fit a detector on the normal images of a folder, and write its bundle.

    Where images are few and none is held back it is cross-fitted as well, see `cross_fit`, so that
    it can be calibrated on the images it was fitted on.

    Args:
        normals: images, at any depth; unreadable ones are set aside and reported.
        weights: of the network, or an .onnx with named feature outputs.
        out: bundle to write; one that is there is replaced at the very end.
        inpainter: an ONNX file that fills holes, see `open_inpainter`; None for the classical one.
        advance: called with (stage, done, total).
    Raises: SourceError where no image can be read; CalibrationError where there are too few;
    ModelError where the weights are missing, damaged or of another network; ConfigError where a
    setting does not fit; MissingDependencyError; BundleError where the bundle cannot be written.
    """
    check_out(out)
    require_export()
    clock = {"start": time.monotonic()}
    _check_weights(options, weights)  # before the images are read, which may take long
    if inpainter is not None:
        from unblemish.export.inpainter import open_inpainter

        open_inpainter(inpainter)
    images = open_images(normals, options, advance)
    check_images(len(images), TITLES[options.method])
    clock["reading"] = time.monotonic()
    made = fit_method(options, images, weights, advance)
    clock["features"] = time.monotonic()
    mixtures = fit_prior(images, options.seed, advance)
    clock["pixel prior"] = time.monotonic()
    folds = fold_count(options, len(images))
    with tempfile.TemporaryDirectory(prefix="unblemish-", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / "whole.bundle" if folds else out
        bundle = write_bundle_of(
            made, options, images, mixtures, weights, place, name or out.stem, inpainter
        )
        clock["writing"] = time.monotonic()
        if folds:
            crossed = cross_fit(options, images, made.graph, bundle, folds, advance)
            bundle = _moved(bundle, out, crossed)
            clock["folds"] = time.monotonic()
    notes = notes_of(images, made.fitted)
    return FitReport(bundle, images, made.fitted.facts, notes, _differences(clock))


def _moved(bundle: Bundle, out: Path, crossed: Crossed) -> Bundle:
    """The bundle at its final place, with what cross-fitting found."""
    files = {name: bundle.path / name for name in bundle.manifest.files}
    record = bundle.manifest.detector
    assert record is not None
    detector = record.model_copy(update={"crossed": crossed})
    return write_bundle(out, files, {**bundle.manifest.model_dump(), "detector": detector})


def check_out(out: Path) -> None:
    """Raise ConfigError where `out` cannot become a bundle, before anything is computed."""
    if out.is_file():
        raise ConfigError(f"{out} is a file; a bundle is a folder. Choose another --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise ConfigError(f"{out} is a folder with other things in it. Choose another --out.")


def _check_weights(options: FitOptions, weights: Path) -> None:
    from unblemish.export.backbones.weights import BACKBONES, read_state, recognise

    if not weights.is_file():
        raise ModelError(
            f"no weights at {weights}. Features are those of a network trained on ImageNet: give "
            f"torchvision's weights of one of {', '.join(BACKBONES)}, for example by\n"
            '  python -c "import torch, torchvision as t; torch.save('
            "t.models.resnet18(weights='DEFAULT').state_dict(), 'resnet18.pth')\""
            "\nor any network as .onnx."
        )
    if weights.suffix == ONNX:
        from unblemish.export.onnx_layers import onnx_layers

        if options.backbone is not None:
            raise ConfigError(f"--backbone names torchvision's networks; {weights} is one itself.")
        onnx_layers(weights, options.layers, options.size)
        return
    if options.mean is not None or options.std is not None:
        raise ConfigError("mean and std are for .onnx networks; torchvision's have ImageNet's.")
    if options.backbone is None:
        recognise(read_state(weights), weights)


def fit_prior(
    images: NormalImages, seed: int, advance: Advance | None = None
) -> tuple[Mixture, ...]:
    """The pixel priors of normal images, at their own resolution; see `fit_mixtures`."""
    from unblemish.runtime.frames import to_channels

    sampler = PixelSampler(len(images), seed=seed)
    for number, unit in enumerate(images.frames(), 1):
        sampler.update(to_channels(unit, images.preprocess.channels))
        if advance is not None:
            advance("pixels", number, len(images))
    return fit_mixtures(sampler.pixels(), seed=seed)


def notes_of(images: NormalImages, fitted: Fitted) -> tuple[str, ...]:
    """What the user should know about this fit, one sentence each."""
    few = (
        (f"{len(images)} normal images are few: what normal parts vary in may be missing.",)
        if len(images) < 16
        else ()
    )
    return fitted.notes + few


def _differences(clock: dict[str, float]) -> dict[str, float]:
    names = list(clock)
    return {b: clock[b] - clock[a] for a, b in itertools.pairwise(names)}
