"""A camera's frame of many megapixels: time, memory and outline.

    python benchmarks/large_frame.py BUNDLE IMAGE [--size 4096x3000] [--tiles] [--normal]
        [--refine f2pad] [--defect 150]

BUNDLE is a calibrated detector, or any other with its own --refine, IMAGE a normal one of its part.
The frame is IMAGE enlarged, or with --tiles repeated by mirroring and cut into model images at its
own scale (a texture's detector without places, PatchCore, is then still valid). Into it go a dark
ellipse, --defect pixels from its centre to its ends, and a dark scratch, nine pixels wide, or with
--normal nothing. Seams: by how much what the search changed differs between neighbouring columns
where tiles begin and end, as a multiple of everywhere; beside it the central 90 % of as many
columns drawn at random. `peak` is the largest resident size of the process, `before` that with the
bundle opened and the frame in memory. Dice is that of F2PAD's mask, of other searches the best over
all thresholds of the score.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.calibration.metrics import best_dice, dice
from unblemish.images import read_image
from unblemish.runtime.geometry import tile_grid
from unblemish.runtime.inspector import Inspector

_LEFT = 0.35  # of the light, in the defects


def main() -> None:
    """Inspect one frame and print what it took."""
    options = _arguments()
    bundle = Bundle.open(options.bundle)
    if options.tiles:
        cut = bundle.manifest.preprocess.model_copy(update={"geometry": "tiles"})
        bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"preprocess": cut}))
    width, height = (int(side) for side in options.size.split("x"))
    frame = _frame(read_image(options.image), height, width, options.tiles)
    truth = np.zeros((height, width), np.bool_)
    if not options.normal:
        truth = _defects(height, width, options.defect)
        frame[truth] = np.asarray(_LEFT * frame[truth], np.uint8)
    with Inspector.open(bundle, refine=options.refine, threads=options.threads) as inspector:
        before = _resident()
        began = time.perf_counter()
        found = inspector.search(frame)
        seconds = time.perf_counter() - began
    print(f"{width} x {height}: {seconds:.1f} s, peak {_resident():.0f} MB ({before:.0f} before)")
    if not options.normal:
        figure = dice(found.mask > 0.5, truth) if options.refine == "f2pad" else None
        best = best_dice(found.score, truth)
        print(f"Dice {figure if best is None or figure is not None else best[0]:.3f}")
    if options.tiles:
        seams, low, high = _seams(found.restored.astype(np.float32) - frame, bundle)
        print(f"seams {seams:.2f}, elsewhere {low:.2f} to {high:.2f}")
    print(", ".join(f"{name} {value / 1000:.2f} s" for name, value in found.timings.items()))


def _frame(image: NDArray[np.uint8], height: int, width: int, tiles: bool) -> NDArray[np.uint8]:
    if not tiles:
        large = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(large, np.uint8)
    rows, columns = image.shape[:2]
    below, beside = max(height - rows, 0), max(width - columns, 0)
    pad = ((0, below), (0, beside), *((0, 0),) * (image.ndim - 2))
    return np.ascontiguousarray(np.pad(image, pad, mode="symmetric")[:height, :width])


def _seams(change: NDArray[np.float32], bundle: Bundle) -> tuple[float, float, float]:
    """Mean absolute step between columns at the borders of tiles, over that between all; and what
    5 % and 95 % of as many random columns stay below."""
    p = bundle.manifest.preprocess
    _, starts = tile_grid(*change.shape[:2], p)
    borders = {round(c / p.scale) for c in (*starts, *(start + p.width for start in starts))}
    steps = np.abs(np.diff(change.reshape(*change.shape[:2], -1), axis=1)).mean(axis=(0, 2))
    steps /= steps.mean()
    at = [b - 1 for b in borders if 0 < b < change.shape[1]]
    others = np.random.default_rng(0).choice(steps, (1000, len(at))).mean(axis=1)
    low, high = np.percentile(others, (5, 95))
    return float(steps[at].mean()), float(low), float(high)


def _defects(height: int, width: int, reach: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.uint8)
    at = (3 * width // 8, 2 * height // 5)
    cv2.ellipse(mask, at, (reach, 2 * reach // 5), 30, 0, 360, 1, -1)
    cv2.line(mask, (5 * width // 8, height // 4), (3 * width // 4, height // 2), 1, 9)
    return mask > 0


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--size", default="4096x3000", help="width x height")
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--normal", action="store_true")
    parser.add_argument("--refine", default="f2pad")
    parser.add_argument("--defect", type=int, default=150)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
