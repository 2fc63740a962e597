"""What a crop with corrected surroundings gets wrong, and what it costs, by its margin.

    python benchmarks/f2pad_crops.py BUNDLE SET [--images 20]

BUNDLE is a detector, SET a folder of `cut_paste.py`. The defect of every image is filled by
inpainting, once in the whole model image and once in a crop around it, whose features are corrected
as in the search. `error` is the difference of the two sums of scores as a share of what the filling
changed; `time` is that of features and scores, as a share of the whole image's; `share` is the
crop's share of its pixels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cut_paste import iterate

from unblemish.bundle import Bundle
from unblemish.kernels import default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.crops import Box
from unblemish.runtime.detectors.crops import CropCells
from unblemish.runtime.detectors.load import load_detector
from unblemish.runtime.frames import to_channels, to_unit
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.inpainting import ClassicalInpainter

MARGINS = (0, 8, 16, 32, 64)
_ROUNDS = 5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    detector = load_detector(
        bundle, open_backend("auto", options.threads), default_kernels(options.threads)
    )
    rows: dict[int, list[tuple[float, float, float]]] = {margin: [] for margin in MARGINS}
    for _, image, truth in islice(iterate(options.set), options.images):
        for margin, row in compare(bundle, detector, image, truth).items():
            rows[margin].append(row)
    print("| margin, px | error, median | largest | time | share |\n|" + " ---: |" * 5)
    for margin, found in rows.items():
        error, cost, share = np.array(found).T
        print(f"| {margin} | {np.median(error):.2%} | {error.max():.2%} | {np.median(cost):.2f} "
              f"| {np.median(share):.2f} |")  # fmt: skip


def compare(
    bundle: Bundle, detector: Any, image: Any, truth: Any
) -> dict[int, tuple[float, float, float]]:
    """Error, time and area of the crops of one image."""
    p = bundle.manifest.preprocess
    geometry = Geometry(p)
    frame = to_channels(to_unit(image), p.channels)
    before = geometry.unit_to_model(frame)
    after = geometry.unit_to_model(ClassicalInpainter()(frame, truth))
    inside = cv2.resize(truth.astype(np.uint8), (p.width, p.height)) > 0
    whole = np.array(detector.features(before)[0])
    scores = [float(np.sum(detector.cells(x), dtype=np.float64)) for x in (before, after)]
    slow = _seconds(lambda: detector.cells(after))
    out = {}
    for margin in MARGINS:
        box = _box(inside, margin, detector.record.align)
        seen, filled = (np.ascontiguousarray(x[(..., *box.slices)]) for x in (before, after))
        cells = CropCells(detector, seen, whole, box, p.width // detector.record.stride)
        changed = [
            float(cells.scores(cells.features(x)).sum(dtype=np.float64)) for x in (seen, filled)
        ]
        wanted = scores[1] - scores[0]
        error = abs((changed[1] - changed[0]) - wanted) / abs(wanted)
        fast = _seconds(lambda c=cells, x=filled: c.scores(c.features(x)))
        out[margin] = error, fast / slow, box.area / inside.size
    return out


def _box(inside: Any, margin: int, align: int) -> Box:
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    edges = []
    for at, side in ((rows, inside.shape[0]), (columns, inside.shape[1])):
        low = max(int(at[0]) - margin, 0) // align * align
        edges.append((low, min(-(-(int(at[-1]) + 1 + margin) // align) * align, side)))
    (top, bottom), (left, right) = edges
    return Box(top, left, bottom, right)


def _seconds(run: Callable[[], Any]) -> float:
    run()
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
