"""One step of the search: forward, backward and the kernels between, against a baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.bundle.manifest import GraphRole
from unblemish.errors import ConfigError
from unblemish.kernels import Kernels, default_kernels
from unblemish.runtime.backends import Backend, Pair, open_backend
from unblemish.runtime.engines import load_discriminator_features, tensor_of_role
from unblemish.runtime.methods.anogan import FeatureDistance
from unblemish.runtime.methods.terms import ImageTerm
from unblemish.runtime.profiling.timing import Times

_WARM_UP = 3
_LEAST_ROUNDS = 5


@dataclass(frozen=True)
class StepTimes:
    """Times of one step at batch 1.

    Args:
        stages: 'forward', 'backward', 'kernels' and their sum 'step', with 'terms', the passes of
            the discriminator's layer, where the bundle was calibrated for AnoGAN.
        baseline: the same of the baseline, 'forward', 'backward' and 'step'; None without one.
        speedup: median over the rounds of baseline step over ours, both taken in the same round;
            without the 'terms', which the baseline has not.
    """

    stages: dict[str, Times]
    baseline: dict[str, Times] | None
    speedup: float | None


def profile_steps(
    bundle: Bundle,
    *,
    backend: str = "auto",
    threads: int | None = None,
    baseline: str | None = None,
    seconds: float = 5.0,
    kernels: Kernels | None = None,
) -> StepTimes:
    """Time steps of a bundle, ours and the baseline's by turns, for about `seconds`.

    Args:
        baseline: None or 'torch': the plain generator in torch with autograd, same threads.
    Raises: ConfigError for another baseline; BundleError, BackendError or MissingDependencyError
    where a graph or engine is missing.
    """
    opened, chosen = (
        open_backend(backend, threads, bundle=bundle),
        kernels or default_kernels(threads),
    )
    pair = opened.pair(*_pair_files(bundle))
    ours = _EngineStep(pair, bundle, chosen, term=_layer_term(bundle, opened, chosen))
    theirs = None if baseline is None else _baseline(baseline, bundle, threads)
    rows = _rounds(ours, theirs, seconds)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    times = {name: Times.of(values) for name, values in columns.items()}
    mine = {name: t for name, t in times.items() if not name.startswith("baseline ")}
    if theirs is None:
        return StepTimes(mine, None, None)
    other = {n.removeprefix("baseline "): t for n, t in times.items() if n not in mine}
    alike = np.subtract(columns["step"], columns.get("terms", 0.0))
    paired = np.divide(columns["baseline step"], alike)
    return StepTimes(mine, other, float(np.median(paired)))


class _EngineStep:
    """A step through a pair; between the two the closed-form kernel, unless it is timed bare, and
    the further term of the image, where there is one."""

    def __init__(
        self,
        pair: Pair,
        bundle: Bundle,
        kernels: Kernels | None,
        *,
        bare: bool = False,
        term: ImageTerm | None = None,
    ) -> None:
        role: GraphRole = "generator" if bare else "generator_forward"
        manifest, random = bundle.manifest, np.random.default_rng(0)
        self._pair, self._term = pair, term
        self._latent = tensor_of_role(manifest, role, "latent", output=False).name
        self._image = tensor_of_role(manifest, role, "image", output=True).name
        size = next(spec.shape for spec in pair.inputs if spec.name == self._latent)
        shape = tuple(d if isinstance(d, int) else 1 for d in size)
        self._z = random.standard_normal(shape, np.float32)
        g = np.array(pair.forward({self._latent: self._z})[self._image], np.float32)
        self._x = g + random.normal(0, 0.05, g.shape).astype(np.float32)
        self._cotangent = (g - self._x) / np.float32(g.size)
        self._kernel = None if bare else _closed_form(kernels or default_kernels(), bundle, self._x)

    def run(self) -> dict[str, float]:
        """Milliseconds by stage."""
        began = perf_counter()
        g = self._pair.forward({self._latent: self._z})[self._image]
        forwarded = perf_counter()
        cotangent = self._cotangent if self._kernel is None else self._kernel(g)
        between = perf_counter()
        if self._term is not None:
            self._term.add(self._x, g, self._x, cotangent=cotangent, value=np.zeros(1))
        added = perf_counter()
        self._pair.backward({self._image: cotangent})
        done = perf_counter()
        stages = {"forward": forwarded - began, "backward": done - added, "step": done - began}
        if self._kernel is not None:
            stages["kernels"] = between - forwarded
        if self._term is not None:
            stages["terms"] = added - between
        return {name: 1e3 * spent for name, spent in stages.items()}


def _rounds(
    ours: _EngineStep, theirs: _EngineStep | None, seconds: float
) -> list[dict[str, float]]:
    def round_() -> dict[str, float]:
        return {**ours.run(), **({} if theirs is None else _prefixed(theirs.run()))}

    for _ in range(_WARM_UP):
        round_()
    rows: list[dict[str, float]] = []
    until = perf_counter() + seconds
    while len(rows) < _LEAST_ROUNDS or perf_counter() < until:
        rows.append(round_())
    return rows


def _closed_form(
    kernels: Kernels, bundle: Bundle, x: NDArray[np.float32]
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    lam = np.full(1, bundle.manifest.rgi.lam, np.float32)
    scale = np.full(1, 1 / x[0].size, np.float32)
    mask = np.empty((1, 1, *x.shape[2:]), np.float32)
    cotangent, objective = np.empty_like(x), np.empty(1, np.float64)

    def between(g: NDArray[Any]) -> NDArray[np.float32]:
        kernels.rgi_closed_form(
            x, g, lam, scale, mask=mask, cotangent=cotangent, objective=objective
        )
        return cotangent

    return between


def _layer_term(bundle: Bundle, backend: Backend, kernels: Kernels) -> ImageTerm | None:
    """The discriminator's layer of a bundle that was calibrated for AnoGAN."""
    calibration = bundle.manifest.calibration
    if calibration is None or calibration.refine != "anogan":
        return None
    layer = load_discriminator_features(bundle, backend)
    return FeatureDistance(layer, kernels, bundle.manifest.rgi.anogan_weight)


def _baseline(name: str, bundle: Bundle, threads: int | None) -> _EngineStep:
    if name != "torch":
        raise ConfigError(f"unknown baseline '{name}'; the only one is 'torch'.")
    from unblemish.runtime.backends.torch import TorchBackend

    pair = TorchBackend(threads).pair_from_graph(str(bundle.graph("generator")))
    return _EngineStep(pair, bundle, None, bare=True)


def _pair_files(bundle: Bundle) -> tuple[str, str]:
    return str(bundle.graph("generator_forward")), str(bundle.graph("generator_backward"))


def _prefixed(times: dict[str, float]) -> dict[str, float]:
    return {f"baseline {name}": value for name, value in times.items()}
