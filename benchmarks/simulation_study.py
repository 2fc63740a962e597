"""The simulation study of RGI's appendix C on a bundle's generator: l2, l1 and RGI.

    python benchmarks/simulation_study.py BUNDLE [BUNDLE ...] [--count N] [--out FIGURE.png]
                                          [--schedule fast|paper] [--lam L]

A test image is G(z*), z* ~ N(0, I), its central block (25 % of the pixels) replaced by noise
N(e, 1), in units where the generator's range is [-1, 1]. Each method restores G(z*); the figure is
the root mean squared error over all images by mean corruption e. All three run in this package's
engines from the same start values; `--schedule paper` descends by Adam for 1,000 steps as the paper
does, the default is this package's own schedule. Source: seed 000, appendix C and figure 5.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.kernels import default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.engines import load_engines
from unblemish.runtime.methods.metric import latent_lengths
from unblemish.runtime.methods.rgi import RgiMethod, limits_for
from unblemish.runtime.methods.starts import LatentBank

LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
METHODS: dict[str, dict[str, Any]] = {
    "l2": {"norm": "l2", "masked": False},
    "l1": {"norm": "l1", "masked": False},
    "RGI": {"norm": "l2", "masked": True},
}
PAPER_STEPS = 1000
Float = NDArray[np.float32]


class Study:
    """One generator, its start values and its methods."""

    def __init__(self, bundle: Bundle, schedule: str, lam: float, threads: int) -> None:
        self.preprocess = bundle.manifest.preprocess
        self.engines = load_engines(bundle, open_backend(threads=threads))
        self.latent = bundle.manifest.model.latent_size
        self.schedule = schedule
        # lambda is given for the range [-1, 1] too.
        self.lam = lam * ((self.preprocess.high - self.preprocess.low) / 2) ** 2
        self.bank = LatentBank.build(
            self.engines.generate, 1000, self.latent, seed=1, batch=self.engines.batch
        )
        lengths = latent_lengths(self.engines.generator, self.bank.latents[:16])
        self.methods = {
            name: RgiMethod(
                self.engines.generator,
                default_kernels(),
                schedule=schedule,
                lengths=lengths,
                **options,
            )
            for name, options in METHODS.items()
        }

    def images(self, level: float, count: int) -> tuple[Float, Float]:
        """Clean images G(z*) and the same with their central quarter corrupted."""
        rng = np.random.default_rng(17)
        clean = self.engines.generate(rng.standard_normal((count, self.latent)).astype(np.float32))
        corrupted = clean.copy()
        height, width = clean.shape[2:]
        block = (
            slice(height // 4, height - height // 4),
            slice(width // 4, width - width // 4),
        )
        noise = rng.normal(level, 1.0, clean[..., block[0], block[1]].shape)
        middle = (self.preprocess.high + self.preprocess.low) / 2
        half = (self.preprocess.high - self.preprocess.low) / 2
        corrupted[..., block[0], block[1]] = middle + half * noise
        return clean, corrupted

    def restore(self, name: str, corrupted: Float) -> Float:
        """Restored images of one method."""
        starts = 1 if self.schedule == "paper" else 4
        steps = PAPER_STEPS if self.schedule == "paper" else 300
        per_batch = max(self.engines.batch // starts, 1)
        limits = limits_for(self.schedule, steps, 1e-4, None, starts, self.lam)
        restored = []
        for first in range(0, len(corrupted), per_batch):
            x = np.ascontiguousarray(corrupted[first : first + per_batch])
            lam = np.full(len(x), self.lam, np.float32)
            z0 = self.bank.nearest(x, starts, lam)
            solution = self.methods[name].solve(x, z0, lam, limits)
            restored.append(self.engines.generate(solution.z))
        return np.concatenate(restored)

    def rmse(self, name: str, level: float, count: int) -> float:
        """RMSE in units where the generator's range is [-1, 1]."""
        clean, corrupted = self.images(level, count)
        difference = (self.restore(name, corrupted) - clean).astype(np.float64)
        half = (self.preprocess.high - self.preprocess.low) / 2
        return float(np.sqrt(np.square(difference / half).mean()))


def plot(tables: dict[str, dict[str, list[float]]], path: Path) -> None:
    """RMSE by mean corruption: one panel a generator, one line a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(tables), figsize=(4.6 * len(tables), 3.6), layout="constrained", squeeze=False
    )
    for (title, table), axes in zip(tables.items(), panels[0], strict=True):
        for (name, values), marker in zip(table.items(), "s^o", strict=True):
            axes.semilogy(LEVELS, values, marker=marker, label=name)
        axes.set_xlabel("mean corruption e (generator: [-1, 1])")
        axes.set_ylabel("RMSE of the restored image")
        axes.set_xticks(LEVELS)
        axes.grid(alpha=0.3)
        axes.set_title(title, fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run_study(bundle: Bundle, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """RMSE by method and level; prints the table as it grows."""
    study = Study(bundle, arguments.schedule, arguments.lam, arguments.threads)
    table: dict[str, list[float]] = {}
    print(f"\n{title_of(bundle)}, {arguments.count} images a level, lambda {arguments.lam:g}\n")
    print("| mean corruption e | " + " | ".join(f"{level:+.1f}" for level in LEVELS) + " |")
    print("|---|" + "---:|" * len(LEVELS))
    for name in METHODS:
        began = time.perf_counter()
        table[name] = [study.rmse(name, level, arguments.count) for level in LEVELS]
        each = (time.perf_counter() - began) / len(LEVELS) / arguments.count
        cells = " | ".join(f"{value:.4f}" for value in table[name])
        print(f"| {name} ({1000 * each:.0f} ms per image) | {cells} |", flush=True)
    return table


def title_of(bundle: Bundle) -> str:
    """Name and size of a generator."""
    p, model = bundle.manifest.preprocess, bundle.manifest.model
    return f"{bundle.manifest.name}: {model.latent_size} latents, {p.width}x{p.height}"


def main() -> None:
    """Run the study on every bundle, print the tables, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--lam", type=float, default=0.07, help="for the range [-1, 1]")
    parser.add_argument("--schedule", choices=("fast", "paper"), default="fast")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("simulation_study.png"))
    arguments = parser.parse_args()
    opened = [Bundle.open(path) for path in arguments.bundles]
    plot({title_of(bundle): run_study(bundle, arguments) for bundle in opened}, arguments.out)
    print(f"\nfigure: {arguments.out}")


if __name__ == "__main__":
    main()
