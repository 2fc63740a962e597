"""The objective over latent and mask together, as the paper descends it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from unblemish.kernels.api import Kernels
from unblemish.runtime.methods.engine import GeneratorEngine
from unblemish.runtime.methods.inversion import Targets
from unblemish.runtime.methods.terms import ImageTerm, add_latent_prior
from unblemish.runtime.solvers.protocol import Evaluation, Float, Index, Variables
from unblemish.runtime.workspace import Workspace


@dataclass
class JointInversion:
    """min over z and M of mean(((1-M)(G(z)-x))^2) + lam/(C h w) sum |M|, M unconstrained.

    The scaling is that of the authors' code: errors are averaged over the elements, not summed, and
    the mask's norm with them, so that a mask element opens where 2 r^2 > lam whatever the size.

    Args: as `Inversion`; `norm` is 'l2' or 'l1'. Variables are (z, M), M (B, 1 or C, h, w).
    Source: seed 000, eq. 3, appendices D and G.
    """

    engine: GeneratorEngine
    kernels: Kernels
    targets: Targets
    lam: Float
    norm: str = "l2"
    terms: tuple[ImageTerm, ...] = ()
    latent_weight: float = 0.0
    workspace: Workspace = field(default_factory=Workspace)
    stages: int = 1

    def evaluate(self, query: Variables, items: Index, stage: Index) -> Evaluation:
        """See `Problem.evaluate`."""
        z, mask = query
        g = self.engine.forward(z)
        began = time.perf_counter()
        x = self.targets.rows(items)
        lam = np.ascontiguousarray(self.lam[items], np.float32)
        get = self.workspace.array
        cotangent, mask_gradient = get("cotangent", g.shape), get("mask_gradient", mask.shape)
        value = get("value", (len(g),), np.float64)
        scale = np.full(len(g), 1.0 / g[0].size, np.float32)
        differentiate = self.kernels.rgi_gradient if self.norm == "l2" else _l1_gradient
        differentiate(
            x,
            g,
            mask,
            lam,
            scale,
            cotangent=cotangent,
            mask_gradient=mask_gradient,
            objective=value,
        )
        began = self.engine.watch.add("kernels", began)
        if self.terms:
            for term in self.terms:
                term.add(x, g, mask, cotangent=cotangent, value=value)
            self.engine.watch.add("terms", began)
        grad, _ = self.engine.backward(cotangent)
        if self.latent_weight:
            grad = grad.copy()
            add_latent_prior(z, self.latent_weight, gradient=grad, value=value)
        return Evaluation(value, (grad, mask_gradient))


def _l1_gradient(
    x: Float,
    g: Float,
    mask: Float,
    lam: Float,
    scale: Float,
    *,
    cotangent: Float,
    mask_gradient: Float,
    objective: Float,
) -> None:
    """objective = scale (sum |(1-M) r| + lam sum |M|), by hand in NumPy."""
    s, w = scale[:, None, None, None], lam[:, None, None, None]
    r, keep = g - x, 1.0 - mask
    size = np.abs(r)
    objective[:] = (np.abs(keep) * size).sum(axis=(1, 2, 3), dtype=np.float64) * scale
    objective += np.abs(mask).sum(axis=(1, 2, 3), dtype=np.float64) * scale * lam
    cotangent[...] = s * np.abs(keep) * np.sign(r)
    share = size.sum(axis=1, keepdims=True) if mask.shape[1] == 1 else size
    mask_gradient[...] = s * (w * np.sign(mask) - np.sign(keep) * share)
