"""From a bundle and normal images to lambda, thresholds and cleaning, written into the bundle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle, update_bundle
from unblemish.bundle.manifest import Calibration
from unblemish.calibration.detector import pixel_floor, prepare_detector
from unblemish.calibration.energy import prepare_energy
from unblemish.calibration.normals import KINDS, SyntheticSet, choose_normals
from unblemish.calibration.result import CalibrationResult
from unblemish.calibration.scores import ScoreStore
from unblemish.calibration.seen import seen_by
from unblemish.calibration.settle import Settled, settle
from unblemish.calibration.tuning import (
    Scope,
    Tuner,
    Tuning,
    lambda_grid,
    scaled_sigmas,
    score_levels,
)
from unblemish.errors import ConfigError
from unblemish.runtime.found import Found
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.options import SearchOptions
from unblemish.runtime.weighting import encode_weight

Progress = Callable[[str, int | None], None]
"""Called after every search: (stage, number of searches in the stage, None where not known)."""

WEIGHT_FILE = "score_weights.npy"
_ANOGAN_WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0)  # around that of Schlegl et al. 2017
SYNTHETIC = 48  # images: each shape with each fill six times


class Searcher(Protocol):
    """What calibration needs of an inspector."""

    def search(self, frame: Any, *, lam: float | None = None) -> Found:
        """Search one frame; only the raw score map is used."""


def calibrate(
    bundle: Bundle | str | os.PathLike[str],
    normals: str | os.PathLike[str],
    *,
    false_reject: float = 0.001,
    seed: int = 0,
    images: int = SYNTHETIC,
    share: float = 1.0,
    most: int | None = None,
    white: float | None = None,
    searcher: Searcher | None = None,
    progress: Progress = lambda stage, total: None,
) -> CalibrationResult:
    """Calibrate a bundle on held-back normal images; the bundle changes at the very end, or not.

    1. Synthetic defects are pasted on the normals (`paste_defect`).
    2. Lambda is raced on them by mean Dice (`Tuner`).
    3. With it, all normals and all synthetic images are searched once; smoothing, per-pixel
       weights, pixel threshold and cleaning are chosen by mean Dice, and the image threshold by the
       predictive tail of the normals' image scores (`settle`).

    Args:
        normals: folder of normal images that the model was not trained on. A detector that was
            cross-fitted, see `cross_fit`, takes those it was fitted on as well.
        false_reject: share of normal parts that may be rejected, in (0, 1).
        seed: fixes everything random.
        images: number of synthetic defects, at least 8.
        share: of the folder's images; with training's folder, seed and held-back share these are
            the images that training kept out.
        most: largest number of normals used.
        white: intensity of white in the images, which the bundle then keeps; None for the
            bundle's, else that of their dtype.
        searcher: instead of `Inspector.open(bundle)`.
    Raises: ConfigError, SourceError, CalibrationError or BundleError; the bundle is then as before.
    """
    began = time.monotonic()
    if not 0 < false_reject < 1:
        raise ConfigError(f"the false-reject rate must lie between 0 and 1; found {false_reject}.")
    if images < len(KINDS):
        raise ConfigError(f"at least {len(KINDS)} synthetic images are needed; found {images}.")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if white is not None:
        opened = _with_white(opened, white)
    stated = opened.manifest.preprocess.white
    chosen = choose_normals(normals, share=share, most=most, seed=seed, white=white, stated=stated)
    polarity = opened.manifest.rgi.polarity
    samples = SyntheticSet(chosen, images, seed, white, polarity, stated)
    search = searcher or Inspector.open(opened, white=white)
    seen = seen_by(opened, chosen.paths)
    if opened.manifest.detector is not None:
        opened, scope = prepare_detector(opened, search, chosen, samples, progress, seen)
    elif opened.manifest.energy is not None:
        opened, scope = prepare_energy(
            opened, opened.manifest.energy, search, samples, lambda: progress("steps", None)
        )
    else:
        scope = _intensities(opened, search)
    refine = getattr(search, "refine", None)
    tuning = _tune(samples, search, progress, min(chosen.frame), scope)
    lam = tuning.best.lam
    with ScoreStore() as normal_maps, ScoreStore() as defect_maps:
        low = _search_all(normal_maps, chosen, len(chosen), search, lam, "normals", progress)
        frames = (sample.image for sample in samples)
        high = _search_all(defect_maps, frames, images, search, lam, "synthetic defects", progress)
        settled = settle(
            opened.manifest.preprocess,
            normal_maps,
            defect_maps,
            samples,
            false_reject,
            lam,
            chosen.frame,
            scope.span,
            scope.sigmas,
            None if low is None or high is None else (seen.peaks(low), high),
            pixel_floor(opened, refine, seen),
        )
    calibration = _calibration(
        tuning,
        settled,
        false_reject,
        seed,
        chosen.sizes,
        len(chosen),
        refine,
    )
    return CalibrationResult(
        bundle=_write(opened, lam, calibration, settled),
        calibration=calibration,
        lam=lam,
        tuning=tuning,
        views={view.name: view.trial for view in settled.views},
        view=settled.view.name,
        reject=settled.reject,
        normal_scores=settled.normal_scores,
        defect_scores=settled.defect_scores,
        clean_normals=settled.clean_normals,
        kinds=settled.kinds,
        examples=settled.examples,
        normals=chosen,
        seen=seen,
        seconds=time.monotonic() - began,
    )


def _with_white(bundle: Bundle, white: float) -> Bundle:
    """The bundle with another white, in memory alone. Raises: ConfigError as `SearchOptions`."""
    SearchOptions(white=white)
    preprocess = bundle.manifest.preprocess.model_copy(update={"white": white})
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"preprocess": preprocess}))


def _intensities(bundle: Bundle, search: Searcher) -> Scope:
    """Range of the scores of a generator's bundle, and the lambdas to try."""
    p = bundle.manifest.preprocess
    span = p.high - p.low
    if getattr(search, "refine", None) == "anogan":
        return Scope(span, _ANOGAN_WEIGHTS)
    return Scope(span, lambda_grid(span, p.channels if bundle.manifest.rgi.mask == "shared" else 1))


def _tune(
    samples: SyntheticSet,
    search: Searcher,
    progress: Progress,
    side: int,
    scope: Scope,
) -> Tuning:
    tuner = Tuner(
        samples,
        lambda frame, lam: search.search(frame, lam=lam).score,
        score_levels(scope.span),
        sigmas=scaled_sigmas(scope.sigmas, side),
        progress=lambda: progress("lambda", None),
    )
    return tuner.tune(scope.grid)


def _search_all(
    store: ScoreStore,
    frames: Any,
    total: int,
    search: Searcher,
    lam: float,
    stage: str,
    progress: Progress,
) -> NDArray[np.float64] | None:
    """Search every frame; returns the evidence, where the search gives it."""
    evidence = []
    for frame in frames:
        found = search.search(frame, lam=lam)
        store.append(found.score)
        evidence.append(found.evidence)
        progress(stage, total)
    given = [value for value in evidence if value is not None]
    return np.array(given) if len(given) == len(evidence) else None


def _calibration(
    tuning: Tuning,
    settled: Settled,
    false_reject: float,
    seed: int,
    sizes: Sequence[tuple[int, int]],
    normals: int,
    refine: str | None,
) -> Calibration:
    cleaning, weight = settled.cleaning, settled.view.weight
    return Calibration(
        pixel_threshold=cleaning.pixel_threshold,
        image_threshold=settled.reject.value,
        smoothing_sigma=settled.view.trial.sigma,
        image_sigma=settled.image_sigma,
        by_evidence=settled.by_evidence,
        open_radius=cleaning.open_radius,
        min_area=cleaning.min_area,
        region_threshold=cleaning.region_threshold,
        level=None if weight is None else weight.level,
        weight_file=None if weight is None or weight.values is None else WEIGHT_FILE,
        false_reject_rate=false_reject,
        observed_false_reject_rate=settled.reject.observed_rate,
        threshold_method=settled.reject.method,
        frame_sizes=_extremes(sizes),
        refine=refine,
        normals=normals,
        synthetic=len(settled.defect_scores),
        seed=seed,
        dice=float(np.mean(cleaning.dices)),
        detection_rate=float((settled.defect_scores > settled.reject.value).mean()),
        curve={f"{t.lam:.6g}": (t.dice, t.spread) for t in tuning.trials},
    )


def _extremes(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
    heights, widths = zip(*sizes, strict=True)
    return (min(heights), min(widths)), (max(heights), max(widths))


def _write(bundle: Bundle, lam: float, calibration: Calibration, settled: Settled) -> Bundle:
    weight = settled.view.weight
    values = None if weight is None else weight.values
    before = bundle.manifest.calibration
    stale = before is not None and before.weight_file is not None and values is None
    return update_bundle(
        bundle,
        files=None if values is None else {WEIGHT_FILE: encode_weight(values)},
        drop=(WEIGHT_FILE,) if stale else (),
        preprocess=bundle.manifest.preprocess,
        calibration=calibration,
        **_settings(bundle, lam, calibration.refine),
    )


def _settings(bundle: Bundle, lam: float, refine: str | None) -> dict[str, Any]:
    """The manifest's sections that hold what was chosen."""
    manifest = bundle.manifest
    if manifest.energy is not None:
        named = {"energy": "lam", "latent": "latent_lam"}.get(refine or "")
        chosen = {} if named is None else {named: lam}
        return {"rgi": manifest.rgi, "energy": manifest.energy.model_copy(update=chosen)}
    if manifest.detector is None:
        name = "anogan_weight" if refine == "anogan" else "lam"
        return {"rgi": manifest.rgi.model_copy(update={name: lam})}
    f2pad = manifest.f2pad
    if refine in ("initial", "f2pad"):
        f2pad = f2pad.model_copy(update={"outline_onset": lam})
    return {"rgi": manifest.rgi, "detector": manifest.detector, "f2pad": f2pad}
