"""AnoGAN beside RGI on the same generator, on a cut-paste set or on real defects.

    python benchmarks/anogan.py SET BUNDLE... [--lam 0.01] [--weights 0.01 0.1 1] [--paper]
        [--every 1]

SET is a folder that `cut_paste.py` wrote, or any in MVTec AD's layout; BUNDLE a generator exported
with --discriminator-layer.
Pixel AUROC over all pixels of the defective images, mean best Dice per image, median time and mean
steps: of the nearest start, of inversion by l1 without a mask, of RGI and of AnoGAN (seed 002,
eq. 2) with several weights of the features; with --paper as published: AnoGAN by 500 steps of Adam
from one random latent, and as many of RGI's Adam from the best of 1,000.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from energy_protocol import measure

from unblemish.bundle import Bundle
from unblemish.runtime.methods.anogan import PAPER_STEPS


def main() -> None:
    """Search every image by every method and print the table."""
    options = _arguments()
    print("| bundle | how | pixel AUROC | best Dice | ms | steps |\n|" + " --- |" * 6)
    for path in options.bundles:
        bundle = Bundle.open(path)
        for how, (settings, opened) in _rows(options).items():
            figures = measure(bundle.with_rgi(**settings), opened, options.set, options)
            print(f"| {path.stem} | {how} | {figures} |", flush=True)


def _rows(options: argparse.Namespace) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """What to measure: name -> settings of the bundle and how to open it."""
    lam = {"lam": options.lam}
    rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "nearest start": (lam, {"refine": "none"}),
        "l1": (lam, {"refine": "l1"}),
        "RGI": (lam, {"refine": "rgi"}),
    }
    for weight in options.weights:
        rows[f"AnoGAN {weight:g}"] = ({**lam, "anogan_weight": weight}, {"refine": "anogan"})
    if options.paper:
        paper = {"schedule": "paper", "max_steps": PAPER_STEPS}
        rows["RGI, paper"] = (lam, {"refine": "rgi", **paper})
        rows["AnoGAN, paper"] = (lam, {"refine": "anogan", **paper})
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", type=Path)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--lam", type=float, default=0.01, help="of RGI")
    parser.add_argument("--weights", nargs="+", type=float, default=[0.01, 0.1, 1.0])
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="take one image in so many")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
