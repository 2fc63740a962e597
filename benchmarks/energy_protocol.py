"""Energy projection on cut-paste sets: tables 1 and 2 of seed 002, and figure 5.

    python benchmarks/energy_protocol.py SETS --out DIR [--models l2ae dsae ae-vae gamma-vae]
        [--names brick gravel grass magnetic_tile] [--minutes 4] [--paper] [--latent] [--scores]
        [--steps]

SETS is the --out of `cut_paste.py`. For every set and model an autoencoder is trained on train/good
(textures by random crops, tiles whole; bundles in --out are used again) and the pixel AUROC of its
DSSIM map taken over all pixels of the defective images: of the plain reconstruction, of the fast
search, and with --paper of the paper's schedule (eq. 8, its settings). --latent adds the search of
the code (eq. 6), for which bundles are exported with decoder and encoder apart. --scores adds the
maps of table 2, --steps the AUROC after 1, 2, 5, ... steps of the standard and the tuned step.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cut_paste import TEXTURES, iterate
from f2pad_protocol import best_dice
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.calibration.metrics.curves import ScoreCounts
from unblemish.calibration.training.options import TrainOptions
from unblemish.calibration.training.run import train
from unblemish.export.build import build_bundle
from unblemish.export.options import ExportOptions
from unblemish.runtime.inspector import Inspector

_CHECKPOINTS = (1, 2, 5, 10, 20, 50, 100, 200)
_NEVER: dict[str, Any] = {"training_losses": (), "tolerance": 0.0}


@dataclass(frozen=True)
class Figures:
    """Of the defective images of a set: pixel AUROC, mean best Dice, median time and steps."""

    auroc: float
    dice: float
    ms: float
    steps: float

    def __str__(self) -> str:
        return f"{self.auroc:.3f} | {self.dice:.3f} | {self.ms:.0f} | {self.steps:.0f}"


def main() -> None:
    """Train, search, and print the tables."""
    options = _arguments()
    print("| set | model | how | pixel AUROC | best Dice | ms | steps |\n|" + " --- |" * 7)
    gains = []
    for name in options.names:
        for model in options.models:
            bundle = bundle_for(name, model, options)
            rows = _rows(bundle, options)
            found = {how: measure(*row, options.sets / name, options) for how, row in rows.items()}
            for how, figures in found.items():
                print(f"| {name} | {model} | {how} | {figures} |", flush=True)
            gains.append(found["energy"].auroc / found["plain"].auroc - 1)
    print(f"mean relative gain in AUROC: {100 * np.mean(gains):+.1f} %")


def bundle_for(name: str, model: str, options: argparse.Namespace) -> Bundle:
    """The bundle of one set and model, trained now unless it is there."""
    path = options.out / f"{model}_{name}.bundle"
    if not path.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        wanted = TrainOptions(
            model=model, minutes=options.minutes, channels=1, seed=0, augment=(),
            geometry="tiles" if name in TEXTURES else "stretch",
        )  # fmt: skip
        checkpoint = path.with_suffix(".pt")
        train(options.sets / name / "train" / "good", checkpoint, wanted, overwrite=True)
        build_bundle(checkpoint, path)
    bundle = Bundle.open(path)
    if options.latent and "encoder" not in bundle.manifest.graphs:
        apart = ExportOptions(latent=True)
        return build_bundle(path.with_suffix(".pt"), path, options=apart)
    return bundle


def _rows(bundle: Bundle, options: argparse.Namespace) -> dict[str, tuple[Bundle, dict[str, Any]]]:
    """What to measure: name -> bundle and how to open it."""
    search, paper = {"refine": "energy"}, {"refine": "energy", "schedule": "paper"}
    rows: dict[str, tuple[Bundle, dict[str, Any]]] = {
        "plain": (bundle, {"refine": "none"}),
        "energy": (bundle, search),
    }
    if options.paper:
        rows["energy, paper"] = (bundle, paper)
    if options.latent:
        code = {"refine": "latent"}
        rows["code"] = (bundle, code)
        if options.paper:
            rows["code, paper"] = (bundle, {**code, "schedule": "paper"})
    if options.scores:
        of_vae = bundle.manifest.model.kind in ("vae", "gamma-vae")
        kinds = ("error", "gradient", "gradient-error", *(("kl", "kl-error") if of_vae else ()))
        rows |= {kind: (bundle, {"refine": kind}) for kind in kinds}
    if options.steps:
        for step in ("plain", "tuned"):
            free = _with(bundle, step=step, alpha=0.05 if step == "plain" else 0.5, **_NEVER)
            rows |= {f"{step} {n}": (free, {**paper, "max_steps": n}) for n in _CHECKPOINTS}
        turns = _with(bundle, **_NEVER)
        rows |= {f"fast {n}": (turns, {**search, "max_steps": n}) for n in _CHECKPOINTS[:5]}
    return rows


def _with(bundle: Bundle, **changes: Any) -> Bundle:
    energy = bundle.manifest.energy
    assert energy is not None
    changed = energy.model_copy(update=changes)
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"energy": changed}))


def measure(
    bundle: Bundle, opened: dict[str, Any], folder: Path, options: argparse.Namespace
) -> Figures:
    """Search every defective image of a set."""
    pixels, dices, seconds, steps = ScoreCounts(), [], [], []
    with Inspector.open(bundle, threads=options.threads, **opened) as inspector:
        for _, image, truth in list(iterate(folder))[:: options.every]:
            began = time.perf_counter()
            found = inspector.search(image)
            seconds.append(time.perf_counter() - began)
            score: NDArray[np.float32] = found.score
            pixels.add(score, truth)
            dices.append(best_dice(score, truth))
            steps.append(found.steps)
    auroc = pixels.auroc()
    assert auroc is not None
    median = 1000 * float(np.median(seconds))
    return Figures(auroc, float(np.mean(dices)), median, float(np.mean(steps)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/energy_protocol"))
    parser.add_argument("--models", nargs="+", default=["l2ae", "dsae", "ae-vae", "gamma-vae"])
    parser.add_argument("--names", nargs="+", default=["brick", "gravel", "grass", "magnetic_tile"])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--every", type=int, default=1, help="take one image in so many")
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--latent", action="store_true")
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
