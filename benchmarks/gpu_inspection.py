"""Whole inspections by several engines: RGI, energy projection and F2PAD, 1 to 64 frames at once.

    python benchmarks/gpu_inspection.py [--backends auto onnxruntime] [--work runs/gpu-inspection]
        [--methods rgi energy f2pad]

Everything is made here: sample parts of `examples/render_parts.py`; for RGI the bundle of the demo,
for energy an autoencoder trained for 150 updates, for F2PAD a PaDiM of 224 pixels on a ResNet-18
whose weights are random, so that its time is that of a real one while its masks are not. Times are
of `Inspector`, from the frame to the verdict, of frames with defects and without, by turns; the
first backend is what the verdicts and masks of the others are held against.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from unblemish.calibration.metrics import dice
from unblemish.export.backbones.resnet import RESNETS, ResNet
from unblemish.images import list_images, read_image
from unblemish.runtime.inspection import Inspection
from unblemish.runtime.inspector import Inspector

ROOT = Path(__file__).parents[1]
BATCHES = (8, 64)


def main() -> None:
    """Make the bundles that are missing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["auto", "onnxruntime"])
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-inspection"))
    parser.add_argument("--methods", nargs="+", choices=MAKERS, default=list(MAKERS))
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    parts = options.work / "parts"
    if not parts.is_dir():
        render = ROOT / "examples" / "render_parts.py"
        _run(str(render), str(parts), "--train", "150", "--calibrate", "40", "--per-defect", "12")
    frames = [read_image(path) for path in list_images(parts / "test")][: max(BATCHES)]
    print("| method | backend | ms, one by one | "
          + " | ".join(f"ms, of {batch} at once" for batch in BATCHES)
          + " | other verdicts | Dice of the masks |")  # fmt: skip
    print("|---|---|" + "---:|" * (len(BATCHES) + 3))
    for method in options.methods:
        bundle = MAKERS[method](options.work, parts)
        expected: list[Inspection] = []
        for backend in options.backends:
            times, found = measure(bundle, backend, frames)
            expected = expected or found
            cells = " | ".join(f"{ms:.1f}" for ms in times)
            print(f"| {method} | {backend} | {cells} | {agreement(found, expected)} |", flush=True)


def measure(bundle: Path, backend: str, frames: list[Any]) -> tuple[list[float], list[Inspection]]:
    """Milliseconds a frame, one by one (median) and of each number at once, and what was found."""
    with Inspector.open(bundle, backend=backend) as inspector:
        inspector.inspect(frames[0])
        single = []
        for frame in frames[: BATCHES[0]]:
            began = time.perf_counter()
            inspector.inspect(frame)
            single.append(1e3 * (time.perf_counter() - began))
        times, found = [statistics.median(single)], []
        for batch in BATCHES:
            began = time.perf_counter()
            found = list(inspector.inspect_many(frames[:batch]))
            times.append(1e3 * (time.perf_counter() - began) / len(found))
    return times, found


def agreement(found: list[Inspection], expected: list[Inspection]) -> str:
    """Share of other verdicts, and the mean Dice of the masks, pairs of empty ones left out."""
    pairs = list(zip(found, expected, strict=True))
    other = np.mean([a.verdict != b.verdict for a, b in pairs])
    alike = [d for a, b in pairs if (d := dice(a.mask, b.mask)) is not None]
    return f"{other:.1%} | {np.mean(alike):.4f}"


def demo_bundle(work: Path, parts: Path) -> Path:
    """The generator that the package ships."""
    return ROOT / "src" / "unblemish" / "demo_data" / "parts.bundle"


def autoencoder_bundle(work: Path, parts: Path) -> Path:
    """An L2 autoencoder of 128 pixels."""
    bundle = work / "energy.bundle"
    if not bundle.exists():
        checkpoint = str(work / "energy.pt")
        _unblemish("train", "--normals", str(parts / "train" / "good"), "--out", checkpoint,
                   "--model", "l2ae", "--size", "128", "--steps", "150")  # fmt: skip
        _unblemish("export", checkpoint, "--out", str(bundle))
        _unblemish("calibrate", str(bundle), "--normals", str(parts / "calibrate" / "good"))
    return bundle


def detector_bundle(work: Path, parts: Path) -> Path:
    """PaDiM with F2PAD on random features."""
    bundle = work / "f2pad.bundle"
    if not bundle.exists():
        weights = work / "random_resnet18.safetensors"
        torch.manual_seed(0)
        save_file(ResNet(RESNETS["resnet18"], ("layer1", "layer2", "layer3")).state_dict(), weights)
        _unblemish("fit", "padim", "--normals", str(parts / "train" / "good"), "--weights",
                   str(weights), "--out", str(bundle))  # fmt: skip
        _unblemish("calibrate", str(bundle), "--normals", str(parts / "calibrate" / "good"))
    return bundle


MAKERS: dict[str, Callable[[Path, Path], Path]] = {
    "rgi": demo_bundle,
    "energy": autoencoder_bundle,
    "f2pad": detector_bundle,
}


def _unblemish(*arguments: str) -> None:
    _run("-m", "unblemish", *arguments)


def _run(*arguments: str) -> None:
    """Run Python; what it says goes to stderr."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
