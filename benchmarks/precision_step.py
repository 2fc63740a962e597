"""Time one forward and backward pass of bundles of one model in several precisions, in turns.

    python benchmarks/precision_step.py part.bundle part_fp16.bundle part_int8.bundle [--threads 1]

Ratios are medians over the rounds of time / that of the first bundle in the same round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from unblemish.bundle import Bundle
from unblemish.runtime.backends import Pair, open_backend

_FORWARD = ("generator_forward", "reconstruct_forward", "features_forward")


def step_of(bundle: Bundle, backend: str, threads: int) -> Callable[[], None]:
    """One image there and back, with random values."""
    role = next(role for role in _FORWARD if role in bundle.manifest.graphs)
    paths = [str(bundle.graph(r)) for r in (role, role.replace("forward", "backward"))]  # type: ignore[arg-type]
    pair: Pair = open_backend(backend, threads, bundle=bundle).pair(*paths)
    sides = (bundle.manifest.preprocess.height, bundle.manifest.preprocess.width)
    rng, feeds = np.random.default_rng(0), {}
    for spec in pair.inputs:
        free = iter(sides)  # symbolic height and width of a detector
        shape = [1, *(d if isinstance(d, int) else next(free) for d in spec.shape[1:])]
        feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    outputs = pair.forward(feeds)
    cotangents = {n: rng.standard_normal(a.shape).astype(a.dtype) for n, a in outputs.items()}

    def step() -> None:
        pair.forward(feeds)
        pair.backward(cotangents)

    return step


def measure(steps: list[Callable[[], None]], rounds: int) -> np.ndarray:
    """Milliseconds, (rounds, steps)."""
    for step in steps:
        step()
    table = np.empty((rounds, len(steps)))
    for row in table:
        for i, step in enumerate(steps):
            began = time.perf_counter()
            step()
            row[i] = 1000 * (time.perf_counter() - began)
    return table


def main() -> None:
    """Read the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    bundles = [Bundle.open(path) for path in options.bundles]
    steps = [step_of(bundle, options.backend, options.threads) for bundle in bundles]
    table = measure(steps, options.rounds)
    ratios = np.median(table / table[:, :1], axis=0)
    print("| bundle | precision | ms, median | ratio | MB |\n|---|---|---:|---:|---:|")
    for bundle, times, ratio in zip(bundles, table.T, ratios, strict=True):
        size = sum(record.bytes for record in bundle.manifest.files.values()) / 1e6
        print(
            f"| {bundle.manifest.name} | {bundle.manifest.precision} | {np.median(times):.2f} "
            f"| {ratio:.2f} | {size:.1f} |"
        )


if __name__ == "__main__":
    main()
