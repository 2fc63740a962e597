"""Energy projection on cut-paste sets: tables 1 and 2 of seed 002, and figure 5.

    python benchmarks/energy_protocol.py SET ... --out DIR [--models l2ae dsae ae-vae gamma-vae]
        [--updates 1000] [--every 1] [--paper] [--latent] [--scores] [--steps [--figure steps.png]]

A SET is one that `cut_paste.py --grey` wrote, or real images in MVTec AD's layout. For every set
and model an autoencoder is trained on train/good (textures by random crops, parts whole; bundles in
--out are used again), and pixel AUROC and AUPRO of its DSSIM map are taken over the defective
images: of the plain reconstruction, of the fast search, and with --paper of the paper's schedule
(eq. 8, its settings: weight 0.05, step 0.5). --latent adds the search of
the code (eq. 6). --scores adds the maps of table 2, --steps the AUROC
after 1, 2, 5, ... steps of the standard and the tuned step and of the fast search. The bundle's
weight of the distance is the default of `export`, uncalibrated, or --lam.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cut_paste import TEXTURES, iterate
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.searches import EnergySettings
from unblemish.calibration.metrics.curves import ScoreCounts, best_dice
from unblemish.calibration.training.options import TrainOptions
from unblemish.calibration.training.run import train
from unblemish.export.build import build_bundle
from unblemish.export.energy_plan import LAM
from unblemish.export.options import ExportOptions
from unblemish.runtime.inspector import Inspector

_CHECKPOINTS = (1, 2, 5, 10, 20, 50, 100, 200)
_NEVER: dict[str, Any] = {"training_losses": (), "tolerance": 0.0}


@dataclass(frozen=True)
class Figures:
    """Of the defective images of a set: pixel AUROC, AUPRO, mean best Dice, mean steps."""

    auroc: float
    aupro: float
    dice: float
    steps: float

    def __str__(self) -> str:
        return f"{self.auroc:.3f} | {self.aupro:.3f} | {self.dice:.3f} | {self.steps:.0f}"


def main() -> None:
    """Train, search, and print the tables."""
    options = _arguments()
    print("| set | model | how | pixel AUROC | AUPRO | best Dice | steps |\n|" + " --- |" * 7)
    gains, curves = [], {}
    for folder in options.sets:
        for model in options.models:
            bundle = bundle_for(folder, model, options)
            rows = _rows(bundle, options)
            found = {how: measure(*row, folder, options) for how, row in rows.items()}
            for how, figures in found.items():
                print(f"| {folder.name} | {model} | {how} | {figures} |", flush=True)
            gains.append(found["energy"].auroc / found["plain"].auroc - 1)
            curves[f"{folder.name}, {model}"] = found
    print(f"mean relative gain in AUROC: {100 * np.mean(gains):+.1f} %")
    if options.figure:
        draw(curves, options.figure)


def draw(curves: dict[str, dict[str, Figures]], path: Path) -> None:
    """AUROC by steps, as figure 5 of the seed, one panel for each set and model."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(curves), figsize=(4 * len(curves), 3), squeeze=False, layout="constrained"
    )
    for panel, (title, found) in zip(panels[0], curves.items(), strict=True):
        for way, label in (("plain", "standard"), ("tuned", "tuned"), ("fast", "default")):
            rows = [(n, found[f"{way} {n}"]) for n in _CHECKPOINTS if f"{way} {n}" in found]
            panel.plot([n for n, _ in rows], [f.auroc for _, f in rows], "o-", ms=3, label=label)
        panel.set(title=title, xscale="log", xlabel="steps", ylabel="pixel AUROC")
    panels[0][0].legend()
    figure.savefig(path, dpi=110)


def bundle_for(folder: Path, model: str, options: argparse.Namespace) -> Bundle:
    """The bundle of one set and model, trained now unless it is there."""
    path = options.out / f"{model}_{folder.name}.bundle"
    if not path.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        wanted = TrainOptions(
            model=model, steps=options.updates, channels=1, seed=0, augment=(),
            geometry="tiles" if folder.name.removesuffix("_grey") in TEXTURES else "stretch",
        )  # fmt: skip
        checkpoint = path.with_suffix(".pt")
        train(folder / "train" / "good", checkpoint, wanted, overwrite=True)
        build_bundle(checkpoint, path)
    bundle = Bundle.open(path)
    if options.latent and "encoder" not in bundle.manifest.graphs:
        apart = ExportOptions(latent=True)
        return build_bundle(path.with_suffix(".pt"), path, options=apart)
    return bundle


def _rows(bundle: Bundle, options: argparse.Namespace) -> dict[str, tuple[Bundle, dict[str, Any]]]:
    """What to measure: name -> bundle and how to open it."""
    search, paper = {"refine": "energy"}, {"refine": "energy", "schedule": "paper"}
    if options.lam is not None:
        bundle = bundle.with_energy(lam=published(bundle, options.lam))
    if options.score is not None:
        bundle = bundle.with_energy(score=options.score)
    seeds = bundle.with_energy(lam=published(bundle))
    rows: dict[str, tuple[Bundle, dict[str, Any]]] = {
        "plain": (bundle, {"refine": "none"}),
        "energy": (bundle, search),
    }
    if options.paper:
        rows["energy, paper"] = (seeds, paper)
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
            alpha = energy_of(bundle).alpha
            free = seeds.with_energy(
                step=step, alpha=alpha / 10 if step == "plain" else alpha, **_NEVER
            )
            rows |= {f"{step} {n}": (free, {**paper, "max_steps": n}) for n in _CHECKPOINTS}
        turns = bundle.with_energy(**_NEVER)
        rows |= {f"fast {n}": (turns, {**search, "max_steps": n}) for n in _CHECKPOINTS[:5]}
    return rows


def energy_of(bundle: Bundle) -> EnergySettings:
    """Settings of the projection."""
    assert bundle.manifest.energy is not None
    return bundle.manifest.energy


def published(bundle: Bundle, lam: float = LAM) -> float:
    """The weight that does to a learned variance what `lam` does beside a squared error."""
    p = bundle.manifest.preprocess
    return lam * (p.high - p.low) * energy_of(bundle).precision


def measure(
    bundle: Bundle, opened: dict[str, Any], folder: Path, options: argparse.Namespace
) -> Figures:
    """Search every defective image of a set."""
    pixels, dices, steps = ScoreCounts(), [], []
    with Inspector.open(bundle, threads=options.threads, **opened) as inspector:
        for _, image, truth in list(iterate(folder))[:: options.every]:
            found = inspector.search(image)
            score: NDArray[np.float32] = found.score
            pixels.add(score, truth)
            best = best_dice(score, truth)
            dices.append(best[0] if best else 0.0)
            steps.append(found.steps)
    auroc, aupro = pixels.auroc(), pixels.aupro()
    assert auroc is not None
    assert aupro is not None
    return Figures(auroc, aupro, float(np.mean(dices)), float(np.mean(steps)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/energy_protocol"))
    parser.add_argument("--models", nargs="+", default=["l2ae", "dsae", "ae-vae", "gamma-vae"])
    parser.add_argument("--updates", type=int, default=1000, help="of the weights")
    parser.add_argument("--every", type=int, default=1, help="take one image in so many")
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--latent", action="store_true")
    parser.add_argument("--lam", type=float, help="weight of the distance beside a squared error")
    parser.add_argument("--score", choices=("dssim", "l2"), help="what the map compares by")
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--figure", type=Path, help="a picture of --steps")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
