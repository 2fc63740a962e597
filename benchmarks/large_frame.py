"""A camera's frame of many megapixels: time, memory and outline.

    python benchmarks/large_frame.py BUNDLE IMAGE [--size 4096x3000] [--tiles] [--normal]

BUNDLE is a calibrated detector, IMAGE a normal one of its part. The frame is IMAGE enlarged, or
with --tiles repeated by mirroring and cut into model images at its own scale (a texture's detector
without places, PatchCore, is then still valid). Into it go a dark ellipse and a dark scratch, nine
pixels wide, or with --normal nothing. `peak` is the largest resident size of the process, `before`
that with the bundle opened and the frame in memory.
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
from unblemish.images import read_image
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
        truth = _defects(height, width)
        frame[truth] = np.asarray(_LEFT * frame[truth], np.uint8)
    with Inspector.open(bundle, refine="f2pad", threads=options.threads) as inspector:
        before = _resident()
        began = time.perf_counter()
        found = inspector.search(frame)
        seconds = time.perf_counter() - began
    mask = found.mask > 0.5
    print(f"{width} x {height}: {seconds:.1f} s, peak {_resident():.0f} MB ({before:.0f} before)")
    if not options.normal:
        print(f"DICE {2 * (mask & truth).sum() / (mask.sum() + truth.sum()):.3f}")
    print(", ".join(f"{name} {value / 1000:.2f} s" for name, value in found.timings.items()))


def _frame(image: NDArray[np.uint8], height: int, width: int, tiles: bool) -> NDArray[np.uint8]:
    if not tiles:
        large = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(large, np.uint8)
    rows, columns = image.shape[:2]
    below, beside = max(height - rows, 0), max(width - columns, 0)
    pad = ((0, below), (0, beside), *((0, 0),) * (image.ndim - 2))
    return np.ascontiguousarray(np.pad(image, pad, mode="symmetric")[:height, :width])


def _defects(height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.uint8)
    at = (3 * width // 8, 2 * height // 5)
    cv2.ellipse(mask, at, (150, 60), 30, 0, 360, 1, -1)
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
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
