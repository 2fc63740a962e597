"""Real defects: plain reconstruction, search without a mask, RGI and R-RGI, side by side.

    python benchmarks/real_defects.py BUNDLE DATA [--normals DIR --share 0.1] [--out DIR] ...

DATA is in MVTec layout. Every mode gets a copy of the bundle, calibrated for itself on normals
that training kept out (never on the test images), and is then run over DATA/test as
`unblemish inspect --truth` runs. `none` is the encoder's reconstruction (the residual of an
autoencoder), `l2` the inversion without a mask whose residual AnoGAN thresholds, `rgi` and `rrgi`
seed 000, eqs. 3 and 4; of detectors see `SearchOptions`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from unblemish.batch.session import BatchOptions, run_batch
from unblemish.batch.sources import list_sources
from unblemish.bundle import Bundle
from unblemish.calibration.calibrate import calibrate
from unblemish.runtime.inspector import Inspector

FIGURES = (
    "dice_best_per_image",
    "dice_at_threshold",
    "iou_at_threshold",
    "pixel_auroc",
    "aupro",
    "image_auroc",
    "detection_rate",
    "false_reject_rate",
)


def main() -> None:
    """Run every mode and print the table of per-category figures."""
    options = _arguments()
    rows = []
    for mode in options.modes:
        metrics = run_mode(mode, options)
        for category in [*metrics["per_category"], "overall"]:
            figures = metrics["per_category"].get(category, metrics["overall"])
            rows.append(_row(mode, category, figures))
    header = ["mode", "category", "images", *FIGURES, "p50 ms"]
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    print("\n".join(rows))


def run_mode(mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Calibrate a copy of the bundle for one mode, inspect the test images, return the metrics."""
    copy = options.out / f"{mode}.bundle"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(options.bundle, copy)
    bundle = Bundle.open(copy).with_rgi(polarity=options.polarity)
    if mode == "rrgi":
        asked = {"finetune_steps": options.finetune_steps, "finetune_lr": options.finetune_lr}
        bundle = bundle.with_rgi(**{name: value for name, value in asked.items() if value})
    settings = {"refine": mode, "backend": options.backend, "threads": options.threads}
    with Inspector.open(bundle, **settings) as inspector:
        calibrate(
            bundle,
            options.normals or options.data / "train" / "good",
            false_reject=options.false_reject,
            share=options.share,
            images=options.synthetic,
            searcher=inspector,
        )
    out = options.out / mode
    batch = BatchOptions(copy, out, truth=options.data / "ground_truth", inspector=settings)
    run_batch(batch, list_sources([options.data / "test"]), lambda record: None)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def _row(mode: str, category: str, figures: dict[str, Any]) -> str:
    cells = ["–" if figures[f] is None else f"{figures[f]:.3f}" for f in FIGURES]
    last = f"{figures['latency_ms']['p50']:.0f}"
    return "| " + " | ".join([mode, category, str(figures["images"]), *cells, last]) + " |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/real_defects"))
    parser.add_argument("--normals", type=Path, help="[DATA/train/good]")
    parser.add_argument("--share", type=float, default=0.1, help="as in `unblemish calibrate`")
    parser.add_argument("--false-reject", type=float, default=0.01)
    parser.add_argument("--synthetic", type=int, default=48)
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["none", "l2", "rgi", "rrgi"],
        help="of a detector: none initial f2pad",
    )
    parser.add_argument("--finetune-steps", type=int)
    parser.add_argument("--finetune-lr", type=float)
    parser.add_argument("--polarity", default="both", choices=("both", "dark", "bright"))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
