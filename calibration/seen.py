"""Which images a detector was fitted on, and how far they reach where it has not seen them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import Crossed
from unblemish.errors import BundleError, SourceError

FITTED = "fitted"  # among the statistics of a detector's bundle
Digests = NDArray[np.uint64]


def digests(paths: Iterable[Path]) -> Digests:
    """The first 8 bytes of the SHA-256 of every file, ascending, (N,): names play no part.

    Raises: SourceError where a file cannot be read.
    """
    return np.array(sorted(map(_digest, paths)), np.uint64)


@dataclass(frozen=True)
class Seen:
    """What a detector knows of the images it is calibrated on.

    Args:
        fitted: (M,) which of them it was fitted on.
        crossed: how far those reach where it has not seen them, if that is known.
    """

    fitted: NDArray[np.bool_]
    crossed: Crossed | None = None

    @property
    def count(self) -> int:
        """How many of the images were fitted."""
        return int(self.fitted.sum())

    def peaks(self, own: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The peaks to go by, given those of the detector itself on every image, (M,).

        They are those of the images that it has not seen, and the crossed ones.
        """
        return self._unseen(own, () if self.crossed is None else self.crossed.peaks)

    def levels(self, own: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The levels to go by; as `peaks`."""
        return self._unseen(own, () if self.crossed is None else self.crossed.levels)

    def _unseen(
        self, own: NDArray[np.floating[Any]], crossed: Sequence[float]
    ) -> NDArray[np.float64]:
        values = np.asarray(own, np.float64)
        if not self.count or not crossed:
            return values
        return np.concatenate([values[~self.fitted], np.array(crossed, np.float64)])

    @property
    def warning(self) -> str | None:
        """What to say where images were fitted and nothing makes up for it."""
        if not self.count or self.crossed is not None:
            return None
        return (
            f"{self.count} of {len(self.fitted)} calibration images were fitted: thresholds come "
            "out too low, and new normal parts will be rejected. Hold images back "
            "(fit --held-back 0.1, then calibrate --share 0.1 with the same --seed), or fit with "
            "--folds 4."
        )

    @property
    def note(self) -> str | None:
        """What to say where images were fitted and something makes up for it."""
        if not self.count or self.crossed is None:
            return None
        return (
            f"{self.count} of {len(self.fitted)} calibration images were fitted: what normal parts "
            f"reach comes from {self.crossed.folds} fits that had not seen them."
        )


def seen_by(bundle: Bundle, paths: Sequence[Path]) -> Seen:
    """Which of the images the bundle's detector was fitted on; none where it does not know.

    Raises: BundleError where its record is damaged; SourceError where an image cannot be read.
    """
    record = bundle.manifest.detector
    nothing = Seen(np.zeros(len(paths), np.bool_))
    if record is None or FITTED not in record.statistics:
        return nothing
    known = _read(bundle, record.statistics[FITTED])
    fitted = np.array([_digest(path) in known for path in paths], np.bool_)
    return Seen(fitted, record.crossed)


def _read(bundle: Bundle, name: str) -> frozenset[int]:
    path = bundle.file(name)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {bundle.path}: {name} cannot be read: {error}") from error
    if array.dtype != np.uint64 or array.ndim != 1:
        raise BundleError(
            f"bundle {bundle.path}: {name} should hold digests, uint64 in one row; it holds "
            f"{array.dtype} {array.shape}. Fit it again."
        )
    return frozenset(array.tolist())


def _digest(path: Path) -> int:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}.") from error
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
