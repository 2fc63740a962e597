"""Figure 10 of seed 003: Adan with gradient sharing against plain Adan, objective by step.

    python benchmarks/f2pad_sharing.py BUNDLE SET --images 4 --figure docs/images/f2pad_sharing.png

BUNDLE is a calibrated detector, SET a folder of `cut_paste.py`. Both searches follow the paper's
schedule and differ in `radius` alone: without neighbours the weights of eq. (14) are the identity.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from cut_paste import iterate
from f2pad_protocol import overlap

from unblemish.bundle import Bundle
from unblemish.runtime.inspector import Inspector

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Run:
    """One image."""

    trace: tuple[float, ...]
    dice: float
    seconds: float


def main() -> None:
    """Run both, print a table, draw the traces."""
    options = _arguments()
    bundle = Bundle.open(options.bundle)
    radius = bundle.manifest.f2pad.radius
    runs = {name: _runs(bundle, r, options) for name, r in (("sharing", radius), ("plain", 0))}
    print("| image | steps | objective | DICE | s | steps, plain Adan | objective | DICE | s |")
    print("|" + " --- |" * 9)
    for number, pair in enumerate(zip(*runs.values(), strict=True)):
        cells = " | ".join(
            f"{len(r.trace)} | {r.trace[-1]:.4g} | {r.dice:.3f} | {r.seconds:.1f}" for r in pair
        )
        print(f"| {number} | {cells} |")
    means = [f"| | {np.mean([r.dice for r in all_]):.3f} |" for all_ in runs.values()]
    print("| mean " + " ".join(f"| {m}" for m in means) + " |")
    if options.figure:
        _draw(runs, options.figure)


def _runs(bundle: Bundle, radius: int, options: argparse.Namespace) -> list[Run]:
    settings = bundle.manifest.f2pad.model_copy(
        update={"radius": radius, "max_steps": options.steps, "beta0": options.beta0}
    )
    changed = Bundle(bundle.path, bundle.manifest.model_copy(update={"f2pad": settings}))
    out = []
    with Inspector.open(
        changed, refine="f2pad", schedule="paper", threads=options.threads
    ) as inspector:
        for _, image, truth in islice(iterate(options.set), options.images):
            found = inspector.search(image)
            dice = overlap(found.mask > 0.5, truth)[1]
            out.append(Run(found.trace, dice, found.timings["search"] / 1000))
    return out


def _draw(runs: dict[str, list[Run]], path: Path) -> None:
    """The objective above the lowest of both runs; it is negative, since eq. (8) is."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    lowest = [min(map(min, (r.trace for r in pair))) for pair in zip(*runs.values(), strict=True)]
    for (name, all_), style in zip(runs.items(), ("-", ":"), strict=True):
        for number, run in enumerate(all_):
            label = f"Adan, {name}" if number == 0 else None
            above = (np.array(run.trace) - lowest[number]) / abs(lowest[number])
            axes.plot(above, style, color=f"C{number}", label=label)
    axes.set(xlabel="step", ylabel="objective above the lowest, share of it", yscale="log")
    axes.set_ylim(1e-4, 3)
    axes.legend()
    figure.savefig(path, dpi=110)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1200, help="at most")
    parser.add_argument("--beta0", type=float, default=1e3)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
