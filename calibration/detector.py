"""What calibration settles first where the bundle is a detector's: how high normal frames reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from unblemish.bundle import Bundle
from unblemish.calibration.defects import SyntheticDefect
from unblemish.calibration.normals import Normals
from unblemish.calibration.race import FIRST
from unblemish.calibration.refinement import choose_weights
from unblemish.calibration.seen import Seen
from unblemish.calibration.tuning import Scope
from unblemish.errors import CalibrationError, ConfigError
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.methods.outline import LARGEST, LARGEST_REFINED

Progress = Callable[[str, int | None], None]

# Deviations from the restored image that count as noise; the tuner goes on between them.
_ONSETS = (1.0, 2.0, 4.0)
_ONSET = 2.0  # with masks, by measurement
_NORMAL_SHARE = 0.9  # of the normals stay below the peak that counts as usual
_COLOUR_MARGIN = 1.2  # colours beyond those of all normals by so much are rarer
_LEAST = 1e-6  # distance: a bank that holds every feature of the images gives 0 on all of them
_RELATIVE_LEVEL = 0.5  # of the usual peak above the median, that 1 in 20 cells exceeds
_MARGIN = 2.0  # scores of synthetic defects reach beyond the evidence of the first few


def prepare_detector(
    bundle: Bundle,
    search: object,
    normals: Normals,
    samples: Sequence[SyntheticDefect],
    progress: Progress,
    seen: Seen,
) -> tuple[Bundle, Scope]:
    """Learn how high normal frames reach, F2PAD's weights, and what scores to expect.

    The searcher, an `Inspector`, goes on with the bundle returned.
    Args:
        seen: which of the normals were fitted; what it knows of them stands in for their surveys.
    Returns: the bundle with what was learned, in memory alone, and what is left to tune: the
        scalar is `outline_onset` (a single value where nothing is to be chosen).
    Raises: CalibrationError where no normal frame gives a finite map.
    """
    if not isinstance(search, Inspector):
        raise ConfigError("a detector is calibrated with an Inspector of its bundle.")
    surveys = []
    for frame in normals:
        surveys.append(search.survey(frame))
        progress("detector", None)
    peaks, levels = (np.array([getattr(s, name) for s in surveys]) for name in ("peak", "level"))
    peaks, levels = seen.peaks(peaks), seen.levels(levels)
    finite = np.isfinite(peaks)
    if not finite.any():
        raise CalibrationError("the detector gives no finite score on any normal image. Fit again.")
    record = bundle.manifest.detector
    assert record is not None
    usual = max(float(np.quantile(peaks[finite], _NORMAL_SHARE)), _LEAST)
    changed = record.model_copy(
        update={
            "normal_peak": usual,
            "mask_threshold": max(float(np.median(peaks[finite])), _LEAST),
            "cell_level": float(np.median(levels[finite])) or None,
            "mixtures": tuple(
                mixture.model_copy(update={"level": _COLOUR_MARGIN * max(reached) or None})
                for mixture, *reached in zip(
                    record.mixtures, *(survey.colours for survey in surveys), strict=True
                )
            ),
        }
    )
    opened = Bundle(bundle.path, bundle.manifest.model_copy(update={"detector": changed}))
    search.adopt(opened)
    settings = bundle.manifest.f2pad
    if search.refine == "initial":
        return opened, Scope(settings.outline_floor + LARGEST, _ONSETS)
    if search.refine == "f2pad":
        opened = choose_weights(opened, search, samples, lambda: progress("weights", None))
        # Masks are accurate to the pixel: smoothing would only blur them, and noise decides
        # nothing where they are trusted.
        return opened, Scope(settings.outline_floor + LARGEST_REFINED, (_ONSET,), (0.0,))
    highest = max(
        search.search(samples[i].image).evidence or 0.0 for i in range(min(FIRST, len(samples)))
    )
    return opened, Scope(_MARGIN * max(highest, usual), (1.0,))


def pixel_floor(bundle: Bundle, refine: str | None, seen: Seen) -> float | None:
    """Score that pixel thresholds lie above where normals were fitted; None where none was.

    Synthetic defects on such normals have a background far below that of new images. What stands
    in for it is the level that 1 in 20 cells exceeds; of outlines, which are relative to the usual
    peak, the share of it that this level comes to. On gravel of 16 images the detector's own masks
    have a Dice of 0.10 without it, 0.45 with it; 95 % and 3 % of the image are flagged in vain.
    Args:
        bundle: as `prepare_detector` returned it.
    """
    record = bundle.manifest.detector
    if record is None or not seen.count or seen.crossed is None:
        return None
    if refine == "none":
        return math.sqrt(record.cell_level or 0.0)
    return _RELATIVE_LEVEL * bundle.manifest.f2pad.outline_floor
