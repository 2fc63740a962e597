"""Synthetic defects with exact masks on normal photographs: appendix F of seed 000, by mode.

    python benchmarks/synthetic_defects.py RESULTS NORMALS [--count 100] [--fill mean|random]

RESULTS is the --out of `real_defects.py`: every mode with its calibrated bundle. NORMALS are images
that neither training nor calibration has seen. On each of the first `--count` one defect of every
shape is pasted, filled with the mean of what it covers as in appendix F ('random': any colour), and
at least a tenth of white away from it; the same images for every mode.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unblemish.calibration.defects import SHAPES, SyntheticDefect, paste_defect
from unblemish.calibration.metrics import Judged, evaluate
from unblemish.images import list_images, read_image
from unblemish.runtime.inspector import Inspector

FIGURES = ("dice_best_per_image", "dice_at_threshold", "iou_at_threshold", "pixel_auroc", "aupro")


def main() -> None:
    """Run every mode that RESULTS has a bundle of, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("normals", type=Path)
    parser.add_argument("--modes", nargs="+", default=["none", "l2", "rgi", "rrgi"])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--fill", choices=("mean", "random"), default="mean")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    header = ["mode", "shape", "images", *FIGURES]
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for mode in options.modes:
        bundle = options.results / f"{mode}.bundle"
        with Inspector.open(bundle, refine=mode, threads=options.threads) as inspector:
            metrics = evaluate(_judged(inspector, options))
        for shape in (*SHAPES, "overall"):
            figures = metrics["per_category"].get(shape, metrics["overall"])
            cells = [f"{figures[name]:.3f}" for name in FIGURES]
            print("| " + " | ".join([mode, shape, str(figures["images"]), *cells]) + " |")


def _judged(inspector: Inspector, options: Any) -> Iterator[Judged]:
    for sample in _samples(options):
        found = inspector.inspect(sample.image)
        yield Judged(
            sample.shape, found.score, found.mask, sample.mask, found.image_score, found.verdict
        )


def _samples(options: Any) -> Iterator[SyntheticDefect]:
    for index, path in enumerate(list_images([options.normals])[: options.count]):
        frame = read_image(path)
        for number, shape in enumerate(SHAPES):
            rng = np.random.default_rng([7, index, number])
            yield paste_defect(frame, rng, shape=shape, fill=options.fill)


if __name__ == "__main__":
    main()
