"""Cross-fitting: how far normal images reach where the detector has not seen them.

A detector scores the images it was fitted on far too low, the more so the fewer they are:
thresholds from them reject most new parts. So the method is fitted anew without each part of the
images in turn, and what that fit makes of them stands in for what the final one would make of new
images. Its fits have fewer images than the final one, so they err on the careful side: thresholds
come out somewhat high rather than low.
"""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Crossed, FileRecord
from unblemish.calibration.features.assembly import Made, fit_graph
from unblemish.calibration.features.fitter import FEWEST_IMAGES, Advance
from unblemish.calibration.features.images import NormalImages
from unblemish.calibration.features.options import FitOptions
from unblemish.errors import CalibrationError
from unblemish.files import sha256_of, write_atomic
from unblemish.images import read_image
from unblemish.runtime.feature_search import FeatureSearch, Survey
from unblemish.runtime.options import SearchOptions

if TYPE_CHECKING:
    from unblemish.export.feature_graph import FeatureGraph

FOLDS = 4
FEW = 64  # images; from more, some can be held back
_LEAVE_ONE_OUT = 8  # images; with fewer, a quarter is too much to go without


def fold_count(options: FitOptions, images: int) -> int:
    """How many fits the options ask for of so many images; 0 where there is nothing to learn."""
    if options.folds == 0 or images <= FEWEST_IMAGES:
        return 0
    if options.folds is None:
        if options.held_back or images > FEW:
            return 0
        return FOLDS if images >= _LEAVE_ONE_OUT else images
    folds = min(options.folds, images)
    enough = images - math.ceil(images / folds) >= FEWEST_IMAGES
    return folds if enough else images


def split_folds(images: int, folds: int, seed: int) -> list[NDArray[np.intp]]:
    """A partition of range(images) into so many parts, as equal as can be, fixed by the seed."""
    order = np.random.default_rng([seed, images, folds]).permutation(images)
    return [np.sort(part) for part in np.array_split(order, folds)]


def cross_fit(
    options: FitOptions,
    images: NormalImages,
    graph: FeatureGraph,
    bundle: Bundle,
    folds: int,
    advance: Advance | None = None,
) -> Crossed:
    """Fit the method `folds` times, each time without one part, and survey that part.

    Args:
        graph: of the features, that of the bundle.
        bundle: fitted on all images; its graphs are used again, and the statistics of one fit at a
            time are written into its folder, beside what its manifest vouches for.
        advance: called with ('fold k of K', done, total) of the stage within.
    Raises: what the fitters raise; CalibrationError where an image has no finite score.
    """
    surveys: list[Survey] = []
    for number, part in enumerate(split_folds(len(images), folds, options.seed), 1):
        kept, left = _without(images, part)
        inner = None if advance is None else _within(advance, f"fold {number} of {folds}")
        made = fit_graph(options, kept, graph, inner)
        work = bundle.path / f"fold{number}"
        try:
            surveys += _survey(_with(bundle, made, work), left, options.threads)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    peaks, levels = (tuple(float(getattr(s, n)) for s in surveys) for n in ("peak", "level"))
    if not np.isfinite([*peaks, *levels]).all():
        raise CalibrationError(
            "the detector gives scores that are not finite on normal images that it has not seen. "
            "Check the weights, or fit with --folds 0."
        )
    return Crossed(peaks=peaks, levels=levels, folds=folds)


def _within(advance: Advance, title: str) -> Advance:
    """Tells of the stages within as one."""
    return lambda stage, done, total: advance(title, done, total)


def _without(images: NormalImages, part: NDArray[np.intp]) -> tuple[NormalImages, tuple[Path, ...]]:
    out = {int(index) for index in part}
    kept = tuple(path for index, path in enumerate(images.paths) if index not in out)
    return replace(images, paths=kept), tuple(images.paths[index] for index in sorted(out))


def _survey(bundle: Bundle, paths: tuple[Path, ...], threads: int | None) -> list[Survey]:
    search = FeatureSearch(bundle, SearchOptions(threads=threads))
    return [search.survey(read_image(path)) for path in paths]


def _with(bundle: Bundle, made: Made, folder: Path) -> Bundle:
    """The bundle with what another fit learned, which is written to `folder` inside of it."""
    contents = {f"{name}.npy": _npy(array) for name, array in made.fitted.statistics.items()}
    if made.flows:
        from unblemish.export.flow_graph import flow_graphs, flow_model

        graphs = flow_graphs(flow_model(made.flows))
        contents |= {f"{role}.onnx": model.SerializeToString() for role, model in graphs.items()}
    files = _written(contents, folder)
    manifest, record = bundle.manifest, bundle.manifest.detector
    assert record is not None
    statistics = {name: f"{folder.name}/{name}.npy" for name in made.fitted.statistics}
    roles = {
        role: graph.model_copy(update={"file": f"{folder.name}/{role}.onnx"})
        if f"{role}.onnx" in contents
        else graph
        for role, graph in manifest.graphs.items()
    }
    changed = {
        "detector": record.model_copy(update={"statistics": statistics}),
        "graphs": roles,
        "files": {**manifest.files, **files},
    }
    return Bundle(bundle.path, manifest.model_copy(update=changed))


def _written(contents: Mapping[str, bytes], folder: Path) -> dict[str, FileRecord]:
    records = {}
    for name, content in contents.items():
        path = folder / name
        write_atomic(path, content)
        records[f"{folder.name}/{name}"] = FileRecord(bytes=len(content), sha256=sha256_of(path))
    return records


def _npy(array: NDArray[np.generic]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array))
    return stream.getvalue()
