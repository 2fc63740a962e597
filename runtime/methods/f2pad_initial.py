"""Where F2PAD begins: above the detector's threshold, or in colours that no normal part has."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle.manifest import Preprocess
from unblemish.bundle.searches import F2padSettings
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.methods.colour import colour_maps
from unblemish.runtime.methods.decomposition import Prior
from unblemish.runtime.methods.f2pad_plan import Plan
from unblemish.runtime.solvers.protocol import Float

Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Initial:
    """Initial mask m0, what may move, and the maps, all native: (H, W).

    Args:
        plain: the detector's map. strange: what exceeds its threshold by how much, as a share of
            it; where colours are rarer than in any normal frame, at least by how much those do.
    """

    plain: Float
    strange: Float
    mask: Bool
    free: Bool


@dataclass(frozen=True)
class InitialMask:
    """Threshold the maps, in each part at least at a share of its own peak; then dilate, model px.

    Args:
        threshold: of the detector's map. colours: of normal parts, whose `level` is theirs; None
            for the detector's map alone.
    """

    plan: Plan
    settings: F2padSettings
    preprocess: Preprocess
    threshold: float
    colours: Prior | None

    def __call__(self, maps: Float, images: Float, shape: tuple[int, ...]) -> Initial:
        """From model images (tiles, C, h, w) and their maps (tiles, h, w) to a frame of `shape`."""
        strange = maps / np.float32(self.threshold)
        if self.plan.choose and self.colours is not None and self.colours.level:
            colours = colour_maps(images, self.colours, self.preprocess)
            strange = np.maximum(strange, colours / np.float32(self.colours.level))
        above = strange > 1
        if self.plan.peak_share:
            above = np.stack([
                _near_peaks(m, a, self.plan.peak_share) for m, a in zip(maps, above, strict=True)
            ])  # fmt: skip
        side = 2 * self.settings.dilation + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        around = np.stack([cv2.dilate(a.astype(np.uint8), disc) for a in above])
        stacked = np.stack([maps, strange, above, around], axis=1, dtype=np.float32)
        native = Geometry(self.preprocess).to_native(stacked, shape)
        mask = native[:, :, 2] > 0.5
        plain, strange = (np.ascontiguousarray(native[:, :, k]) for k in (0, 1))
        return Initial(plain, strange, mask, mask | (native[:, :, 3] > 0.5))


def _near_peaks(plain: Float, above: Bool, share: float) -> Bool:
    """Of every connected part, the pixels above that share of its peak."""
    count, labels = cv2.connectedComponents(above.astype(np.uint8))
    peaks = np.full(count, np.inf, np.float32)
    for part in range(1, count):
        peaks[part] = plain[labels == part].max()
    return np.asarray(above & (plain > share * peaks[labels]))
