"""F2PAD's runtime beside plain eager torch (`f2pad_eager.py`), image by image by turns.

    python benchmarks/f2pad_speed.py SET WEIGHTS --method padim|patchcore [--images 5] [--bundle B]
        [--steps 200]

SET is a folder of `cut_paste.py`. With a calibrated bundle of the same method its inspector takes
each image right after, the detector's pass included, and the last column is the ratio of the times.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import f2pad_eager as eager
import numpy as np
import torch
from cut_paste import iterate
from f2pad_protocol import best_threshold, overlap

from unblemish.runtime.inspector import Inspector


def main() -> None:
    """Refine the defects of one set and print DICE, iterations and seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--method", choices=("padim", "patchcore"), default="padim")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--train", type=int)
    for name in ("alpha1", "beta0", "rate", "tolerance"):
        parser.add_argument(f"--{name}", type=float, default=getattr(eager.Settings, name))
    parser.add_argument("--steps", type=int, help="instead of the stopping rule")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    kind = eager.Padim if options.method == "padim" else eager.PatchCore
    normals = eager.load_normals(options.set / "train" / "good", options.train)
    model = kind(eager.ResNet18(options.weights), normals, 3, 0)
    samples = list(iterate(options.set))
    maps = [model.plain_map(image) for _, image, _ in samples]
    threshold = best_threshold(maps, [truth for _, _, truth in samples])
    settings = eager.Settings(
        alpha1=options.alpha1,
        beta0=options.beta0,
        rate=options.rate,
        tolerance=options.tolerance,
        steps=options.steps,
        decrease=0.1 if options.method == "padim" else 0.05,
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    ours = None
    if options.bundle:
        ours = Inspector.open(options.bundle, refine="f2pad", threads=options.threads)
        ours.search(samples[0][1])
    header = "| image | area | plain DICE | refined DICE | iterations | s | ours DICE | s | ratio |"
    print(header + "\n|" + " --- |" * 9)
    rows = []
    for index in np.linspace(0, len(samples) - 1, options.images).round().astype(int):
        (_, image, truth), mask0 = samples[index], maps[index] > threshold
        found = eager.refine(image, model, mask0, settings)
        plain, refined = overlap(mask0, truth)[1], overlap(found.mask, truth)[1]
        figures = [plain, refined, found.iterations, found.seconds]
        if ours is not None:
            begin = time.perf_counter()
            mask = ours.search(image).mask > 0.5
            seconds = time.perf_counter() - begin
            figures += [overlap(mask, truth)[1], seconds, found.seconds / seconds]
        rows.append(figures)
        cells = [str(index), str(int(truth.sum())), *(f"{f:.4g}" for f in figures)]
        print("| " + " | ".join(cells) + " |", flush=True)
    means = [f"{value:.4g}" for value in np.mean(rows, axis=0)]
    print(f"| mean | | {' | '.join(means)} |")
    if ours is not None:
        print(f"median ratio {np.median([row[-1] for row in rows]):.0f}, least "
              f"{min(row[-1] for row in rows):.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
