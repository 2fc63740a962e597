"""The compiled CPU kernels: SIMD chosen at run time, threads for large arrays."""

from __future__ import annotations

from unblemish.cores import available_cores
from unblemish.errors import ConfigError
from unblemish.kernels import _cpu, checks
from unblemish.kernels.api import Double, Float
from unblemish.kernels.cpu.energy_terms import CpuEnergyTerms
from unblemish.kernels.cpu.feature_terms import CpuFeatureTerms
from unblemish.kernels.cpu.image_terms import CpuImageTerms


def instruction_sets() -> list[str]:
    """Return the copies of the kernels that this processor runs, narrowest first."""
    return _cpu.instruction_sets()


class CpuKernels(CpuImageTerms, CpuFeatureTerms, CpuEnergyTerms):
    """`Kernels` in C++. Results do not depend on the number of threads; calls release the GIL.

    One object may serve several Python threads: while one of them occupies the worker threads, the
    others compute on their own. After a fork the child computes on one thread.

    Args:
        threads: how many threads large arrays are shared by; None for the processors available.
        instruction_set: one of `instruction_sets()`; None for the widest, the last. 'baseline' has
            the same digits on every x86-64 processor.
    Raises: ConfigError where `threads` is less than 1 or the instruction set is not available.
    """

    name = "cpu"

    def __init__(self, threads: int | None = None, *, instruction_set: str | None = None) -> None:
        count = available_cores() if threads is None else threads
        if count < 1:
            raise ConfigError(f"CpuKernels needs at least one thread, found threads={threads}.")
        available = instruction_sets()
        chosen = available[-1] if instruction_set is None else instruction_set
        if chosen not in available:
            raise ConfigError(
                f"CpuKernels: instruction_set={chosen!r} is not one this processor and build have: "
                f"{', '.join(available)}."
            )
        self._engine = _cpu.Engine(count, chosen)

    @property
    def threads(self) -> int:
        """How many threads share a large array."""
        return self._engine.threads

    @property
    def instruction_set(self) -> str:
        """Which copy of the kernels runs: 'baseline', 'avx2' or 'avx512'."""
        return self._engine.instruction_set

    def rgi_closed_form(
        self,
        x: Float,
        g: Float,
        lam: Float,
        scale: Float,
        *,
        mask: Float,
        cotangent: Float,
        objective: Double,
    ) -> None:
        try:
            self._engine.rgi_closed_form(x, g, lam, scale, mask, cotangent, objective)
        except (TypeError, ValueError):
            checks.rgi_closed_form(
                x, g, lam, scale, mask=mask, cotangent=cotangent, objective=objective
            )
            raise

    def rgi_gradient(
        self,
        x: Float,
        g: Float,
        mask: Float,
        lam: Float,
        scale: Float,
        *,
        cotangent: Float,
        mask_gradient: Float,
        objective: Double,
    ) -> None:
        try:
            self._engine.rgi_gradient(x, g, mask, lam, scale, cotangent, mask_gradient, objective)
        except (TypeError, ValueError):
            checks.rgi_gradient(
                x,
                g,
                mask,
                lam,
                scale,
                cotangent=cotangent,
                mask_gradient=mask_gradient,
                objective=objective,
            )
            raise

    def residual_l2(
        self,
        x: Float,
        g: Float,
        scale: Float,
        *,
        cotangent: Float,
        objective: Double,
        weight: Float | None = None,
    ) -> None:
        try:
            self._engine.residual_l2(x, g, scale, cotangent, objective, weight)
        except (TypeError, ValueError):
            checks.residual(
                "residual_l2", x, g, scale, cotangent=cotangent, objective=objective, weight=weight
            )
            raise

    def residual_l1(
        self,
        x: Float,
        g: Float,
        scale: Float,
        *,
        cotangent: Float,
        objective: Double,
        weight: Float | None = None,
    ) -> None:
        try:
            self._engine.residual_l1(x, g, scale, cotangent, objective, weight)
        except (TypeError, ValueError):
            checks.residual(
                "residual_l1", x, g, scale, cotangent=cotangent, objective=objective, weight=weight
            )
            raise

    def adam(
        self,
        p: Float,
        grad: Float,
        m: Float,
        v: Float,
        *,
        step: int,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        lower: float = float("-inf"),
        upper: float = float("inf"),
    ) -> None:
        try:
            self._engine.adam(p, grad, m, v, step, lr, beta1, beta2, eps, lower, upper)
        except (TypeError, ValueError):
            checks.adam(p, grad, m, v, step=step, lower=lower, upper=upper)
            raise

    def project_ball(self, p: Float, *, centre: Float | None, radius: Float) -> None:
        try:
            self._engine.project_ball(p, centre, radius)
        except (TypeError, ValueError):
            checks.project_ball(p, centre=centre, radius=radius)
            raise

    def norms(self, x: Float, *, squared: Double, largest: Double) -> None:
        try:
            self._engine.norms(x, squared, largest)
        except (TypeError, ValueError):
            checks.norms(x, squared=squared, largest=largest)
            raise

    def all_finite(self, x: Float) -> bool:
        try:
            return self._engine.all_finite(x)
        except (TypeError, ValueError):
            checks.all_finite(x)
            raise
