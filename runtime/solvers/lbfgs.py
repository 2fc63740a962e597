"""L-BFGS over a batch of small problems, each with its own memory and step length."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from unblemish.runtime.solvers.protocol import Bool, Double, Index, Variables

_SUFFICIENT = 1e-4  # Armijo's constant
_CURVATURE = 1e-10  # smallest cosine between step and change of gradient that is remembered
_SHORTEST = 1e-3  # step lengths below this share of the direction are given up


@dataclass
class LbfgsState:
    """Everything between two steps, rows in front.

    u, value, gradient: the best accepted point, in scaled variables u = z / scale. direction,
    length: the trial is u + length * direction; query: the same in z. s, y: past steps and changes
    of gradient, newest last; rho: 1 / (s y), 0 where empty. fresh: the query is u itself, under an
    objective not yet evaluated. moved: the last step was accepted. stuck: nothing helps.
    """

    query: Variables
    trial: Double
    u: Double
    value: Double
    gradient: Double
    direction: Double
    length: Double
    s: Double
    y: Double
    rho: Double
    fresh: Bool
    moved: Bool
    stuck: Bool


@dataclass(frozen=True)
class Lbfgs:
    """Limited-memory BFGS with Armijo backtracking by quadratic interpolation.

    Every step costs one evaluation, accepted or not. Pairs of poor curvature are not remembered,
    because the profile of the RGI objective is not convex; the memory outlives `restart`, because
    a change of lambda leaves most of the curvature as it was.

    Args:
        memory: pairs kept.
        scale: (n,) typical length of each variable, 1 / sqrt(diagonal of the Hessian): the metric
            of the first step and of what the memory does not know. None: all alike, and the first
            step goes half way to where the value would be zero if it were linear.
        first: bound of a step without memory, in units of sqrt(n) (the norm of a typical latent).
        longest: bound of any step, in the same unit.
    Source: Nocedal & Wright, Numerical Optimization, algorithm 7.4 and section 3.5.
    """

    memory: int = 8
    scale: Double | None = None
    first: float = 0.5
    longest: float = 1.5

    def init(self, start: Variables) -> LbfgsState:
        """See `Solver.init`; one group of variables, (B, n)."""
        (z,) = start
        rows, size = z.shape
        zeros = np.zeros((rows, size))
        u = z / self._scale(size)
        return LbfgsState(
            query=(np.array(z, np.float32),),
            trial=u.copy(),
            u=u,
            value=np.full(rows, np.inf),
            gradient=zeros.copy(),
            direction=zeros.copy(),
            length=np.ones(rows),
            s=np.zeros((rows, self.memory, size)),
            y=np.zeros((rows, self.memory, size)),
            rho=np.zeros((rows, self.memory)),
            fresh=np.ones(rows, np.bool_),
            moved=np.zeros(rows, np.bool_),
            stuck=np.zeros(rows, np.bool_),
        )

    def _scale(self, size: int) -> Double:
        return np.ones(size) if self.scale is None else self.scale

    def step(self, state: LbfgsState, value: Double, gradient: Variables) -> LbfgsState:
        """See `Solver.step`."""
        new = gradient[0] * self._scale(gradient[0].shape[1])
        slope = np.einsum("bn,bn->b", state.direction, state.gradient) * state.length
        finite = np.isfinite(value)
        accepted = finite & (state.fresh | (value <= state.value + _SUFFICIENT * slope))
        state.stuck |= state.fresh & ~finite
        self._remember(state, new, accepted & ~state.fresh)
        self._shorten(state, value, slope, ~accepted)
        state.u[accepted] = state.trial[accepted]
        state.value[accepted] = value[accepted]
        state.gradient[accepted] = new[accepted]
        state.fresh[:] = False
        state.moved[:] = accepted
        self._aim(state, accepted)
        return self._trial(state)

    def done(self, state: LbfgsState) -> Bool:
        """See `Solver.done`."""
        return state.stuck

    def moved(self, state: LbfgsState) -> Bool:
        """See `Solver.moved`."""
        return state.moved

    def restart(self, state: LbfgsState, rows: Bool) -> LbfgsState:
        """See `Solver.restart`."""
        state.fresh |= rows
        state.stuck &= ~rows
        return self._trial(state)

    def take(self, state: LbfgsState, rows: Index) -> LbfgsState:
        """See `Solver.take`."""
        kept = {
            field.name: getattr(state, field.name)[rows]
            for field in fields(state)
            if field.name != "query"
        }
        return replace(state, query=(state.query[0][rows],), **kept)

    def _remember(self, state: LbfgsState, gradient: Double, rows: Bool) -> None:
        s = state.trial - state.u
        y = gradient - state.gradient
        product = np.einsum("bn,bn->b", s, y)
        size = np.linalg.norm(s, axis=1) * np.linalg.norm(y, axis=1)
        good = rows & (product > _CURVATURE * size) & (size > 0)
        for stack, entry in ((state.s, s), (state.y, y)):
            stack[good] = np.roll(stack[good], -1, axis=1)
            stack[good, -1] = entry[good]
        state.rho[good] = np.roll(state.rho[good], -1, axis=1)
        state.rho[good, -1] = 1.0 / product[good]

    def _shorten(self, state: LbfgsState, value: Double, slope: Double, rows: Bool) -> None:
        """Minimise the parabola through the refused value; as a last resort drop the memory."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            excess = value - state.value - slope
            ratio = np.where(np.isfinite(excess) & (excess > 0), -slope / (2 * excess), 0.25)
        state.length[rows] *= np.clip(np.nan_to_num(ratio[rows], nan=0.25), 0.1, 0.5)
        short = rows & ~state.fresh & (state.length < _SHORTEST)
        hopeless = short & (state.rho[:, -1] == 0)
        state.stuck |= hopeless
        forget = short & ~hopeless
        state.rho[forget] = 0.0
        self._aim(state, forget)

    def _aim(self, state: LbfgsState, rows: Bool) -> None:
        """New direction and full step for these rows."""
        if not rows.any():
            return
        direction = -_two_loop(
            state.gradient[rows],
            state.s[rows],
            state.y[rows],
            state.rho[rows],
        )
        blind = state.rho[rows][:, -1] == 0
        if self.scale is None:
            # Without curvature the gradient has no length of its own.
            steep = np.maximum(np.square(state.gradient[rows]).sum(axis=1), 1e-300)
            direction *= np.where(blind, 0.5 * np.abs(state.value[rows]) / steep, 1.0)[:, None]
        size = direction.shape[1]
        norm = np.linalg.norm(direction * self._scale(size), axis=1)
        bound = np.where(blind, self.first, self.longest) * np.sqrt(size)
        state.direction[rows] = direction * np.minimum(1, bound / np.maximum(norm, 1e-300))[:, None]
        state.length[rows] = 1.0

    def _trial(self, state: LbfgsState) -> LbfgsState:
        move = np.where(state.fresh | state.stuck, 0.0, state.length)
        scale = self._scale(state.u.shape[1])
        z = ((state.u + move[:, None] * state.direction) * scale).astype(np.float32)
        # Where the step really goes: rounding is not small against the last steps.
        return replace(state, query=(z,), trial=z / scale)


def _two_loop(
    gradient: NDArray[np.float64],
    s: NDArray[np.float64],
    y: NDArray[np.float64],
    rho: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Inverse Hessian times gradient; pairs with rho = 0 do nothing."""
    q = gradient.copy()
    memory = s.shape[1]
    alpha = np.zeros((memory, len(q)))
    for i in range(memory - 1, -1, -1):
        alpha[i] = rho[:, i] * np.einsum("bn,bn->b", s[:, i], q)
        q -= alpha[i][:, None] * y[:, i]
    yy = np.einsum("bn,bn->b", y[:, -1], y[:, -1])
    used = rho[:, -1] > 0
    q *= np.where(used, 1.0 / np.where(used, rho[:, -1] * yy, 1.0), 1.0)[:, None]
    for i in range(memory):
        beta = rho[:, i] * np.einsum("bn,bn->b", y[:, i], q)
        q += (alpha[i] - beta)[:, None] * s[:, i]
    return q
