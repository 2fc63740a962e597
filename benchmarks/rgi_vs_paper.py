"""RGI as the paper runs it, in eager torch, against this package's default, on the same images.

    python benchmarks/rgi_vs_paper.py BUNDLE [--images DIR] [--checkpoint CKPT] [--count N] ...

The paper's side is written from the paper and its authors' settings, with nothing of this package
but the generator: z0 the best of 1,000 random latents by mean squared error, Adam with rate 0.1 on
z and an unconstrained mask, 2,000 steps of autograd. The generator comes from the checkpoint where
one is given, else from the bundle's plain graph run in torch.

Images: normal photographs from --images brought to the model's size, or images of the generator
itself with a little noise; on each one synthetic defect with its exact mask (seed 003, eq. 16).
Both sides get one image at a time and the same number of threads, in turn. Times are those of the
search alone: the 1,000 candidates are left out on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unblemish.bundle import Bundle
from unblemish.calibration.defects import FILLS, SHAPES, paste_defect
from unblemish.runtime.frames import to_unit
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.options import SearchOptions
from unblemish.runtime.search import Search

Generator = Callable[[Tensor], Tensor]
Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A frame at the model's size in [0, 1], the normal it was made of, and the true mask."""

    frame: Array
    normal: Array
    truth: NDArray[np.bool_]


@dataclass(frozen=True)
class Result:
    """Mask in [0, 1] and restored image (C, h, w) in model intensities, and the seconds it took."""

    mask: Array
    restored: Array
    seconds: float


def paper_rgi(
    generator: Generator, x: Tensor, candidates: Tensor, lam: float, steps: int, rate: float = 0.1
) -> Result:
    """RGI, eq. 3 of the paper, descended as in its appendices."""
    with torch.no_grad():
        errors = [((generator(z[None]) - x) ** 2).mean() for z in candidates]
    z = candidates[int(torch.stack(errors).argmin())][None].clone().requires_grad_()
    mask = torch.zeros(1, 1, *x.shape[2:], requires_grad=True)
    optimiser = torch.optim.Adam([z, mask], lr=rate)
    began = time.perf_counter()
    for _ in range(steps):
        optimiser.zero_grad()
        image = generator(z)
        error = torch.nn.functional.mse_loss((1 - mask) * image, (1 - mask) * x)
        loss = error + lam * mask.abs().sum() / x.numel()
        loss.backward()
        optimiser.step()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        restored = generator(z)[0].numpy()
    return Result(mask.detach()[0, 0].numpy(), restored, seconds)


def our_rgi(search: Search, case: Case, lam: float) -> Result:
    """The default of this package."""
    began = time.perf_counter()
    found = search(case.frame, lam=lam)
    seconds = time.perf_counter() - began
    geometry = Geometry(search.bundle.manifest.preprocess)
    restored = geometry.to_intensity(to_unit(found.restored)).transpose(2, 0, 1)
    return Result(found.mask, restored, seconds)


def torch_generator(bundle: Bundle, checkpoint: Path | None) -> Generator:
    """z (1, n) -> image (1, C, h, w)."""
    if checkpoint is not None:
        from unblemish.export.models.checkpoint import load_model

        return load_model(checkpoint).generator
    from unblemish.runtime.backends.torch_graph import TorchGraph

    graph = TorchGraph(str(bundle.graph("generator"))).eval().requires_grad_(False)
    entry, out = graph.inputs[0].name, graph.outputs[0].name
    return lambda z: graph(**{entry: z})[out]


def make_cases(
    bundle: Bundle, generator: Generator, images: Path | None, count: int, noise: float
) -> list[Case]:
    """Normals of the generator's manifold, or from a folder, each with one defect."""
    p = bundle.manifest.preprocess
    geometry = Geometry(p)
    rng = np.random.default_rng(7)
    normals = []
    if images is not None:
        files = sorted(f for f in images.iterdir() if f.suffix.lower() in (".png", ".jpg", ".bmp"))
        for index in np.linspace(0, len(files) - 1, count).round().astype(int):
            frame = cv2.imread(str(files[index]), cv2.IMREAD_COLOR)
            assert frame is not None, files[index]
            unit = to_unit(np.ascontiguousarray(frame[..., ::-1]))
            normals.append(geometry.to_unit_range(geometry.unit_to_model(unit)[0]))
    else:
        for _ in range(count):
            z = torch.tensor(rng.standard_normal((1, bundle.manifest.model.latent_size))).float()
            with torch.no_grad():
                image = geometry.to_unit_range(generator(z)[0].numpy())
            normals.append(image + noise * rng.standard_normal(image.shape))
    cases = []
    for number, normal in enumerate(normals):
        frame = np.clip(normal, 0, 1).astype(np.float32).transpose(1, 2, 0)
        shape, fill = SHAPES[number % len(SHAPES)], FILLS[number % len(FILLS)]
        defect = paste_defect(frame, rng, shape=shape, fill=fill, contrast=0.15)
        cases.append(Case(defect.image, frame.transpose(2, 0, 1), defect.mask))
    return cases


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (mask & truth).sum() / max(mask.sum() + truth.sum(), 1))


def best_dice(score: Array, truth: NDArray[np.bool_]) -> float:
    """Dice at the best threshold."""
    order = np.argsort(-score.ravel())
    hits = np.cumsum(truth.ravel()[order])
    return float((2 * hits / (np.arange(1, hits.size + 1) + truth.sum())).max())


def figures(result: Result, case: Case, geometry: Geometry) -> dict[str, float]:
    """Quality of one result."""
    x = geometry.to_intensity(case.frame.transpose(2, 0, 1))
    normal = geometry.to_intensity(case.normal)
    residual = np.sqrt(np.square(x - result.restored).mean(axis=0))
    return {
        "Dice of M > 1/2": dice(result.mask > 0.5, case.truth),
        "best Dice of residual": best_dice(residual, case.truth),
        "RMSE of restored": float(np.sqrt(np.square(normal - result.restored).mean())),
        "ms per image": 1000 * result.seconds,
    }


def main() -> None:
    """Run both sides in turn and print the table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    bundle = Bundle.open(arguments.bundle)
    lam = arguments.lam or bundle.manifest.rgi.lam
    generator = torch_generator(bundle, arguments.checkpoint)
    search = Search(bundle, SearchOptions(threads=arguments.threads, refine="rgi"))
    geometry = Geometry(bundle.manifest.preprocess)
    cases = make_cases(bundle, generator, arguments.images, arguments.count, arguments.noise)
    latents = np.random.default_rng(0).standard_normal((1000, bundle.manifest.model.latent_size))
    candidates = torch.tensor(latents).float()
    rows: dict[str, list[tuple[float, float]]] = {}
    for number, case in enumerate(cases):
        x = torch.tensor(geometry.to_intensity(case.frame.transpose(2, 0, 1)))[None]
        theirs = figures(paper_rgi(generator, x, candidates, lam, arguments.steps), case, geometry)
        our_rgi(search, case, lam)  # the first pass of a size allocates
        ours = figures(our_rgi(search, case, lam), case, geometry)
        for name, value in theirs.items():
            rows.setdefault(name, []).append((value, ours[name]))
        print(
            f"image {number + 1}/{len(cases)}: " + _line(theirs) + " | " + _line(ours), flush=True
        )
    print_table(rows, bundle, lam, arguments)


def _line(figure: dict[str, float]) -> str:
    return " ".join(f"{value:.3f}" for value in figure.values())


def print_table(
    rows: dict[str, list[tuple[float, float]]], bundle: Bundle, lam: float, arguments: Any
) -> None:
    """Means of both sides, and the median of the ratios of time."""
    print(
        f"\n{bundle.manifest.name}: {len(next(iter(rows.values())))} images, lambda {lam:g}, "
        f"paper {arguments.steps} steps, {arguments.threads} thread(s)"
    )
    print(f"| {'':24} | {'paper, eager torch':>18} | {'our default':>12} |")
    print("|---|---:|---:|")
    for name, pairs in rows.items():
        theirs, ours = (statistics.fmean(pair[side] for pair in pairs) for side in (0, 1))
        print(f"| {name:24} | {theirs:18.4f} | {ours:12.4f} |")
    ratios = [theirs / ours for theirs, ours in rows["ms per image"]]
    print(f"time ratio: median {statistics.median(ratios):.0f}, least {min(ratios):.0f}")


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, help="folder of normal photographs")
    parser.add_argument("--checkpoint", type=Path, help="the generator as a torch module")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lam", type=float)
    parser.add_argument("--noise", type=float, default=0.01, help="without --images, of white")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
