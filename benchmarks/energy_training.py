"""How good an autoencoder is after how long: training runs of several lengths, each measured.

    python benchmarks/energy_training.py SET --models l2ae [gamma-vae ...] --minutes 0.5 1 2 4
        [--network resnet] [--out DIR]

SET is one set of `cut_paste.py`. Every row is a training run of its own, as `unblemish train
--minutes` makes it (textures by random crops, tiles whole), so that its step size falls to the end
of that time. Updates and processor seconds, reading and saving included, say what a busy machine
gave it: one that is quiet gives `--minutes` on every thread. Root mean square error (share of the
intensity range) and loss L_r are those of the normal images held back; pixel AUROC is that of the
DSSIM map on the defective images, of the plain reconstruction and of the fast search.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from cut_paste import TEXTURES
from energy_protocol import measure

from unblemish.calibration.training.options import TrainOptions
from unblemish.calibration.training.run import TrainingReport, train
from unblemish.export.build import build_bundle


def main() -> None:
    """Train, measure, and print one row for every model and length."""
    options = _arguments()
    heads = "model", "minutes", "updates", "CPU s", "rmse", "loss", "plain AUROC", "fast AUROC"
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for model in options.models:
        for minutes in options.minutes:
            began = time.process_time()
            report = trained(model, minutes, options)
            spent = time.process_time() - began
            path = report.checkpoint.with_suffix(".bundle")
            shutil.rmtree(path, ignore_errors=True)
            bundle = build_bundle(report.checkpoint, path)
            figures = [
                measure(bundle, {"refine": refine}, options.set, options).auroc
                for refine in ("none", "energy")
            ]
            row = [model, f"{minutes:g}", str(report.steps), f"{spent:.0f}", *_row(report, figures)]
            print("| " + " | ".join(row) + " |", flush=True)


def trained(model: str, minutes: float, options: argparse.Namespace) -> TrainingReport:
    """A run of one model and length."""
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{model}_{options.network}_{options.set.name}_{minutes:g}"
    checkpoint = options.out / f"{stem}.pt"
    texture = options.set.name.removesuffix("_grey") in TEXTURES
    wanted = TrainOptions(
        model=model, minutes=minutes, network=options.network, augment=(), seed=options.seed,
        geometry="tiles" if texture else "stretch",
    )  # fmt: skip
    return train(options.set / "train" / "good", checkpoint, wanted, overwrite=True)


def _row(report: TrainingReport, aurocs: list[float]) -> list[str]:
    figures = report.figures
    measured = f"{figures['held_back_rmse']:.4f}", f"{figures['held_back_loss']:.4g}"
    return [*measured, *(f"{auroc:.3f}" for auroc in aurocs)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", type=Path)
    parser.add_argument("--models", nargs="+", default=["l2ae"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--network", default="conv")
    parser.add_argument("--out", type=Path, default=Path("runs/energy_training"))
    parser.add_argument("--every", type=int, default=1, help="take one image in so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
