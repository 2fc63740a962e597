"""What a step of energy projection takes: a turn without gradient, and a step of descent."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from unblemish.bundle import Bundle
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.energy_search import energy_method, load_autoencoder
from unblemish.runtime.profiling.timing import Times

_LEAST_ROUNDS = 5


def profile_projection(
    bundle: Bundle,
    *,
    backend: str = "auto",
    threads: int | None = None,
    seconds: float = 5.0,
    kernels: Kernels | None = None,
) -> dict[str, Times]:
    """Time searches of one image of random pixels, by turns, for about `seconds`.

    Returns: 'turn' of the fast schedule (a pass forward and the update), 'step' of the paper's (a
        pass forward and back, and the update); each the time of a search by its steps.
    Raises: BundleError, BackendError or MissingDependencyError where a graph or engine is missing.
    """
    opened = open_backend(backend, threads, bundle=bundle)
    chosen = kernels or default_kernels(threads)
    methods = {
        name: energy_method(
            bundle, load_autoencoder(bundle, opened, gradient=slopes), chosen, schedule
        )
        for name, schedule, slopes in (("turn", "fast", False), ("step", "paper", True))
    }
    p = bundle.manifest.preprocess
    random = np.random.default_rng(0)
    image = random.uniform(p.low, p.high, (1, p.channels, p.height, p.width)).astype(np.float32)
    rows: list[dict[str, float]] = []
    until = perf_counter() + seconds
    while len(rows) <= _LEAST_ROUNDS or perf_counter() < until:
        row = {}
        for name, method in methods.items():
            began = perf_counter()
            steps = int(method.solve(image, max_steps=_LEAST_ROUNDS).steps[0])
            row[name] = 1e3 * (perf_counter() - began) / steps
        rows.append(row)
    return {name: Times.of([row[name] for row in rows[1:]]) for name in methods}
