"""What a precision costs, on normal images with synthetic defects, and when that is too much."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Calibration
from unblemish.calibration.metrics.overlap import dice
from unblemish.errors import ModelError
from unblemish.runtime.decision import decide
from unblemish.runtime.found import Found
from unblemish.runtime.inspection import Inspection
from unblemish.runtime.inspector import Inspector
from unblemish.runtime.weighting import load_weight

_PIXELS = 0.999  # share of the normal pixels below the threshold where a bundle has none yet


@dataclass(frozen=True)
class Tolerance:
    """The most that a precision may cost; each as the field of `Drift` of that name.

    Of the restored image only the root mean square counts: where a search has two equally good
    ends, single pixels say which of them it took.
    """

    dice_drop: float
    mask_dice: float
    image_rmse: float
    verdicts: float


TOLERANCES = {
    "fp16": Tolerance(dice_drop=0.01, mask_dice=0.97, image_rmse=0.005, verdicts=0.05),
    "bf16": Tolerance(dice_drop=0.02, mask_dice=0.93, image_rmse=0.01, verdicts=0.05),
    "int8": Tolerance(dice_drop=0.03, mask_dice=0.90, image_rmse=0.02, verdicts=0.10),
}


@dataclass(frozen=True)
class Sample:
    """A frame, float32 in [0, 1], with the mask of its defect, or None where it is normal."""

    frame: NDArray[np.float32]
    truth: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Drift:
    """A precision against float32 on the same frames.

    Args:
        dice: mean Dice of the masks with the synthetic defects; `dice_drop`: float32's minus it.
        mask_dice: mean Dice of the masks with float32's, on the defects.
        image_max, image_rmse: of the restored images, white is 1; `psnr`: 20 log10(1 / rmse).
        verdicts: share of the frames with another verdict.
    """

    dice: float
    dice_drop: float
    mask_dice: float
    image_max: float
    image_rmse: float
    psnr: float
    verdicts: float

    def figures(self, precision: str) -> dict[str, float]:
        """For the manifest: names begin with the precision."""
        return {f"{precision}_{name}": value for name, value in asdict(self).items()}

    def text(self) -> str:
        """One line for a person."""
        return (
            f"Dice {self.dice:.4f} ({-self.dice_drop:+.4f}), masks {self.mask_dice:.4f} alike, "
            f"image max {self.image_max:.4f}, RMSE {self.image_rmse:.5f}, PSNR {self.psnr:.1f} dB, "
            f"other verdicts {self.verdicts:.1%}"
        )

    def check(self, precision: str, tolerance: Tolerance) -> None:
        """Raise ModelError with the first figure beyond its tolerance."""
        limits = (
            ("dice_drop", self.dice_drop <= tolerance.dice_drop, "at most"),
            ("mask_dice", self.mask_dice >= tolerance.mask_dice, "at least"),
            ("image_rmse", self.image_rmse <= tolerance.image_rmse, "at most"),
            ("verdicts", self.verdicts <= tolerance.verdicts, "at most"),
        )
        for name, kept, words in limits:
            if not kept:
                raise ModelError(
                    f"export refused: in {precision} the figure {name} is "
                    f"{getattr(self, name):.4g}, allowed is {words} "
                    f"{getattr(tolerance, name):.4g} ({self.text()}). Nothing was written. Export "
                    "with a higher precision."
                )


class Judged:
    """The frames as a bundle judges them in float32: what other precisions are held against."""

    def __init__(self, bundle: Bundle, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._weight = load_weight(bundle)
        found = list(_search(bundle, samples))
        self._calibration = bundle.manifest.calibration or _thresholds(samples, found)
        self._expected = [self._decide(one) for one in found]

    def drift(self, bundle: Bundle) -> Drift:
        """How far another bundle of the same model strays on these frames."""
        found = [self._decide(one) for one in _search(bundle, self._samples)]
        pairs = list(zip(found, self._expected, strict=True))
        error = [a.restored.astype(np.float64) - b.restored.astype(np.float64) for a, b in pairs]
        rmse = math.sqrt(float(np.mean([np.mean(e * e) for e in error])))
        before, after = self._dice(self._expected), self._dice(found)
        bad = [pair for pair, s in zip(pairs, self._samples, strict=True) if s.truth is not None]
        return Drift(
            dice=after,
            dice_drop=before - after,
            mask_dice=float(np.mean([_overlap(a.mask, b.mask) for a, b in bad])),
            image_max=float(max(np.abs(e).max() for e in error)),
            image_rmse=rmse,
            psnr=-20 * math.log10(max(rmse, 1e-12)),
            verdicts=float(np.mean([a.verdict != b.verdict for a, b in pairs])),
        )

    def _decide(self, found: Found) -> Inspection:
        return decide(found, self._calibration, weight=self._weight)

    def _dice(self, found: Sequence[Inspection]) -> float:
        pairs = zip(found, self._samples, strict=True)
        return float(np.mean([_overlap(f.mask, s.truth) for f, s in pairs if s.truth is not None]))


def _search(bundle: Bundle, samples: Sequence[Sample]) -> Iterator[Found]:
    with Inspector.open(bundle, backend="onnxruntime") as inspector:
        for sample in samples:
            yield inspector.search(sample.frame)


def _overlap(mask: NDArray[Any], truth: NDArray[Any]) -> float:
    """Dice; two empty masks are equal."""
    found = dice(mask, truth)
    return 1.0 if found is None else found


def _thresholds(samples: Sequence[Sample], found: Sequence[Found]) -> Calibration:
    """For a bundle that is not calibrated yet: what the normal frames among these do not reach."""
    normal = [f for f, s in zip(found, samples, strict=True) if s.truth is None]
    pixel = float(np.quantile(np.concatenate([f.score.ravel() for f in normal]), _PIXELS))
    peak = max(float(f.score.max()) if f.evidence is None else f.evidence for f in normal)
    return Calibration(
        pixel_threshold=max(pixel, 1e-6), image_threshold=peak, false_reject_rate=1 / len(normal),
        normals=len(normal), seed=0,
    )  # fmt: skip
