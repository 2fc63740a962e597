"""What a step of an autoencoder's search takes: a turn, a step of descent, a step of the code."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from unblemish.bundle import Bundle
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.autoencoders import (
    energy_method,
    latent_method,
    load_autoencoder,
    load_code_engines,
)
from unblemish.runtime.backends import open_backend
from unblemish.runtime.methods.energy import EnergyMethod
from unblemish.runtime.methods.latent import LatentMethod
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
        pass forward and back, and the update), and, where the bundle has the decoder apart, 'code'
        of the fast search of the code (the decoder forward and back, and the update); each the time
        of a search by its steps.
    Raises: BundleError, BackendError or MissingDependencyError where a graph or engine is missing.
    """
    opened = open_backend(backend, threads, bundle=bundle)
    chosen = kernels or default_kernels(threads)
    methods: dict[str, EnergyMethod | LatentMethod] = {
        name: energy_method(
            bundle, load_autoencoder(bundle, opened, gradient=slopes), chosen, schedule
        )
        for name, schedule, slopes in (("turn", "fast", False), ("step", "paper", True))
    }
    if "generator_forward" in bundle.manifest.graphs:
        engines = load_code_engines(bundle, opened)
        methods["code"] = latent_method(bundle, engines, chosen, "fast")
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
