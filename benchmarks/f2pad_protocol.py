"""The protocol of seed 003 on cut-paste sets: plain and refined IoU and DICE, tables I to III.

    python benchmarks/f2pad_protocol.py SETS WEIGHTS --out DIR [--methods padim patchcore cflow]
        [--names brick gravel grass magnetic_tile] [--few 16] [--ablation] [--sheet]

SETS is the --out of `cut_paste.py`. For every set and method a detector is fitted on train/good
and calibrated on images that the fit kept out; with --few on so many of its images alone, which
calibration then sees again; bundles in --out are used again. `plain` is the detector's map at the
threshold with the largest F1 over all test pixels, which needs the labels, as in section IV-A3;
`refined` is F2PAD's own mask, which does not. Beside them: the best threshold for each single image
of the detector's map, the share of images whose refinement was judged no better and kept the plain
outline, and those where refined falls below plain by more than 2 points. --ablation adds the start
n0 alone, and refinement without the pixel prior and without what a flagged pixel costs.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cut_paste import GROUPS, iterate
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.calibration.calibrate import calibrate
from unblemish.calibration.features.fit import fit
from unblemish.calibration.features.options import FitOptions
from unblemish.images import list_images
from unblemish.runtime.frames import to_unit
from unblemish.runtime.inpainting import ClassicalInpainter
from unblemish.runtime.inspector import Inspector

Mask = NDArray[np.bool_]
_FLOOR = 0.02  # DICE; less is no loss that anyone sees


@dataclass
class Row:
    """Figures of every test image of one set."""

    plain: list[tuple[float, float]] = field(default_factory=list)
    refined: list[tuple[float, float]] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    start: tuple[float, float] = (0.0, 0.0)


def main() -> None:
    """Fit, calibrate, inspect, and print the table."""
    options = _arguments()
    header = ["method", "set", "plain IoU", "plain DICE", "refined IoU", "refined DICE",
              "gain", "best per image", "kept plain", "worse", "ms"]  # fmt: skip
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header), flush=True)
    for method in options.methods:
        rows = []
        for name in options.names:
            bundle = bundle_for(method, name, options)
            for variant, changed in variants(bundle, options.ablation).items():
                row = measure(changed, options.sets / name, options, f"{method}_{name}_{variant}")
                print(_line(method + variant, name, [row]), flush=True)
                if options.ablation and not variant:
                    print(f"| {method} start alone | {name} | | | {row.start[0]:.3f} "
                          f"| {row.start[1]:.3f} |" + " |" * 5, flush=True)  # fmt: skip
                rows += [row] if not variant else []
        print(_line(method, "mean", rows), flush=True)
        for (low, high), figures in by_size(rows).items():
            print(
                f"|  | {low:.1%}..{high:.1%} | | {figures[0]:.3f} | | {figures[1]:.3f} |" + " |" * 5
            )


def bundle_for(method: str, name: str, options: argparse.Namespace) -> Bundle:
    """The calibrated bundle of one set, fitted now unless it is there."""
    suffix = f"_{options.few}" if options.few else ""
    path = options.out / f"{method}_{name}{suffix}.bundle"
    if not path.exists():
        normals = options.sets / name / "train" / "good"
        if options.few:
            normals = _few(normals, options.few, options.out / f"{name}{suffix}")
        kept_out = 0.0 if options.few else options.held_back
        began = time.perf_counter()
        fit(FitOptions(method, held_back=kept_out), normals, options.weights, path)
        with Inspector.open(path, refine="f2pad", threads=options.threads) as inspector:
            share = kept_out or 1.0
            calibrate(path, normals, share=share, false_reject=0.01, most=48,
                      images=options.synthetic, searcher=inspector)  # fmt: skip
        print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)
    return Bundle.open(path)


def _few(normals: Path, count: int, folder: Path) -> Path:
    """A folder of that many of the images, and nothing else."""
    folder.mkdir(exist_ok=True)
    for path in list_images(normals)[:count]:
        shutil.copy(path, folder)
    return folder


def variants(bundle: Bundle, ablation: bool) -> Mapping[str, Bundle]:
    """The bundle, and for table III without one thing each."""
    if not ablation:
        return {"": bundle}
    detector = bundle.manifest.detector
    assert detector is not None
    blind = detector.model_copy(update={"mixtures": ()})
    free = bundle.manifest.f2pad.model_copy(update={"beta": 1e-9})
    return {
        "": bundle,
        " w/o pixel prior": _with(bundle, detector=blind),
        " w/o sparsity": _with(bundle, f2pad=free),
    }


def _with(bundle: Bundle, **changes: Any) -> Bundle:
    return Bundle(bundle.path, bundle.manifest.model_copy(update=changes))


def measure(bundle: Bundle, folder: Path, options: argparse.Namespace, title: str) -> Row:
    """Plain and refined figures of every defective image of a set."""
    row, maps, truths, pictures = Row(), [], [], []
    with Inspector.open(
        bundle, refine="f2pad", schedule=options.schedule, threads=options.threads
    ) as inspector:
        for _, image, truth in iterate(folder):
            plain = inspector.detect(image).score
            began = time.perf_counter()
            found = inspector.search(image)
            row.seconds.append(time.perf_counter() - began)
            mask = found.mask > 0.5
            row.refined.append(overlap(mask, truth))
            row.kept.append(found.kept_plain > 0)
            row.areas.append(float(truth.mean()))
            row.best.append(best_dice(plain, truth))
            maps.append(plain)
            truths.append(truth)
            pictures.append((image, found.restored, mask))
    threshold = best_threshold(maps, truths)
    row.plain = [overlap(m > threshold, t) for m, t in zip(maps, truths, strict=True)]
    if options.ablation:
        dilation = bundle.manifest.f2pad.dilation
        row.start = start_alone([p[0] for p in pictures], maps, truths, threshold, dilation)
    if options.sheet:
        _sheet(options.out / f"{title}.png", pictures, maps, truths, threshold, row)
    return row


def best_threshold(maps: list[NDArray[np.float32]], truths: list[Mask]) -> float:
    """Threshold of the largest F1 over all pixels, as in section IV-A3."""
    scores, truth = (
        np.concatenate([m.ravel() for m in maps]),
        np.concatenate([t.ravel() for t in truths]),
    )
    order = np.argsort(-scores)
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    return float(scores[order[int(np.argmax(f1))]])


def start_alone(
    images: list[Any],
    maps: list[NDArray[np.float32]],
    truths: list[Mask],
    threshold: float,
    dilation: int,
) -> tuple[float, float]:
    """Mean IoU and DICE of |x - n0| for the inpainted n0, at its best threshold (section IV-C1)."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * dilation + 1,) * 2)
    apart = []
    for image, plain in zip(images, maps, strict=True):
        hole = cv2.dilate((plain > threshold).astype(np.uint8), disc) > 0
        unit = np.atleast_3d(to_unit(image))
        apart.append(np.linalg.norm(unit - ClassicalInpainter()(unit, hole), axis=2))
    level = best_threshold(apart, truths)
    found = [overlap(a > level, t) for a, t in zip(apart, truths, strict=True)]
    iou, dice = np.mean(found, axis=0)
    return float(iou), float(dice)


def overlap(mask: Mask, truth: Mask) -> tuple[float, float]:
    """IoU and DICE, eq. (17); 1 where both are empty."""
    both, either = int((mask & truth).sum()), int((mask | truth).sum())
    return (both / either, 2 * both / (both + either)) if either else (1.0, 1.0)


def best_dice(score: NDArray[np.float32], truth: Mask) -> float:
    """Largest DICE that any threshold gives on this image."""
    order = np.argsort(-score, axis=None)
    hits = np.cumsum(truth.ravel()[order])
    return float((2 * hits / (np.arange(1, truth.size + 1) + truth.sum())).max())


def by_size(rows: list[Row]) -> dict[tuple[float, float], tuple[float, float]]:
    """Mean plain and refined DICE by the share of the image that is defective, as in figure 7."""
    areas, plain, refined = (
        np.concatenate([values(row) for row in rows])
        for values in (
            lambda row: np.array(row.areas),
            lambda row: np.array(row.plain)[:, 1],
            lambda row: np.array(row.refined)[:, 1],
        )
    )
    out = {}
    for low, high in GROUPS:
        inside = (areas >= low) & (areas < high)
        if inside.any():
            out[low, high] = float(plain[inside].mean()), float(refined[inside].mean())
    return out


def _line(method: str, name: str, rows: list[Row]) -> str:
    plain, refined = (np.concatenate([getattr(r, k) for r in rows]) for k in ("plain", "refined"))
    kept, seconds, best = (
        np.concatenate([getattr(r, k) for r in rows]) for k in ("kept", "seconds", "best")
    )
    worse = int((refined[:, 1] < plain[:, 1] - _FLOOR).sum())
    cells = [
        *(f"{value:.3f}" for value in (*plain.mean(0), *refined.mean(0))),
        f"{100 * (refined - plain).mean(0)[1]:+.1f}",
        f"{best.mean():.3f}",
        f"{int(kept.sum())} of {len(kept)}",
        str(worse),
        f"{1000 * np.median(seconds):.0f}",
    ]
    return "| " + " | ".join([method, name, *cells]) + " |"


def _sheet(
    path: Path,
    pictures: list[tuple[Any, Any, Mask]],
    maps: list[NDArray[np.float32]],
    truths: list[Mask],
    threshold: float,
    row: Row,
) -> None:
    """Frame, truth, plain mask, refined mask and restored image, the worst first."""
    lines = []
    for index in np.argsort([r[1] for r in row.refined])[:12]:
        image, restored, mask = pictures[index]
        cells = [
            image,
            _shown(truths[index]),
            _shown(maps[index] > threshold),
            _shown(mask),
            restored,
        ]
        lines.append(np.hstack([_colour(cell) for cell in cells]))
    cv2.imwrite(str(path), np.vstack(lines)[:, :, ::-1])


def _shown(mask: Mask) -> NDArray[np.uint8]:
    return np.asarray(mask * 255, np.uint8)


def _colour(image: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.repeat(image[:, :, None], 3, 2) if image.ndim == 2 else image, np.uint8)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/f2pad_protocol"))
    parser.add_argument("--methods", nargs="+", default=["padim", "patchcore", "cflow"])
    parser.add_argument("--names", nargs="+", default=["brick", "gravel", "grass", "magnetic_tile"])
    parser.add_argument("--few", type=int, help="images to fit on, and no others")
    parser.add_argument("--held-back", type=float, default=0.1)
    parser.add_argument("--synthetic", type=int, default=24)
    parser.add_argument("--schedule", default="fast", choices=("fast", "paper"))
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--sheet", action="store_true", help="write pictures of the worst")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
