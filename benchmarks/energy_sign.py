"""The l1 term of energy projection by its sign and by its proximal step, on a linear autoencoder.

    python benchmarks/energy_sign.py [brick|gravel|grass ...]

The autoencoder is the projection on 100 principal components of patches of the upper part of one of
scikit-image's textures; patches of the lower part carry a rectangle of foreign texture. The energy
is convex, so both ways have one minimum, and the energy reached says which is nearer. Each row is
the best step size of its kind by that energy, per patch after 60 steps. AUROC of the DSSIM map
between patch and result, by pixel, mean over the patches; `change` is the last squared change.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage import data, transform
from sklearn.metrics import roc_auc_score

from unblemish.kernels import default_kernels

Float = NDArray[np.float32]
SIDE, COMPONENTS, STEPS = 48, 100, (10, 20, 60)
KERNELS = default_kernels(1)


@dataclass(frozen=True)
class Linear:
    """x_hat = mean + V V^T (x - mean): the gradient of |x - x_hat|^2 is 2 (x - x_hat)."""

    mean: Float
    components: Float

    def __call__(self, x: Float) -> Float:
        flat = x.reshape(len(x), -1) - self.mean
        return (flat @ self.components.T @ self.components + self.mean).reshape(x.shape)


def _setup(name: str) -> tuple[Linear, Float, NDArray[np.bool_]]:
    """The autoencoder, patches with defects, and where they are."""
    rng = np.random.default_rng(0)
    image = transform.resize(getattr(data, name)() / 255, (256, 256), anti_aliasing=True)

    def patches(count: int, first: int, last: int) -> Float:
        highest = [last - SIDE, 256 - SIDE]
        corners = rng.integers([first, 0], highest, size=(count, 2))
        return np.stack([image[y : y + SIDE, x : x + SIDE] for y, x in corners])[:, None].astype(
            "f"
        )

    train = patches(2000, 0, 176).reshape(2000, -1)
    test, foreign = patches(48, 176, 256), patches(48, 0, 176)[:, :, ::-1]
    mask = np.zeros(test.shape, bool)
    for one in mask[:, 0]:
        y, x = rng.integers(4, SIDE - 16, 2)
        one[y : y + rng.integers(6, 13), x : x + rng.integers(6, 13)] = True
    test[mask] = (0.5 * foreign + 0.35 * rng.integers(0, 2, (48, 1, 1, 1)))[mask]
    mean = train.mean(0)
    components = np.linalg.svd(train - mean, full_matrices=False)[2][:COMPONENTS]
    return Linear(mean, components), test, mask


def _auroc(start: Float, x: Float, mask: NDArray[np.bool_]) -> float:
    found, one = np.empty_like(x), np.ones(len(x), np.float32)
    KERNELS.dssim(
        start, x, one, data_range=1.0, dissimilarity=found, direct=None, cotangent=None,
        objective=np.empty(len(x)),
    )  # fmt: skip
    return float(
        np.mean([roc_auc_score(m.ravel(), f.ravel()) for m, f in zip(mask, found, strict=True)])
    )


def _search(
    model: Linear, start: Float, mask: NDArray[np.bool_], lam: float, rate: float, **kind: bool
) -> tuple[float, list[float], float]:
    """Energy reached per patch, AUROC after each of STEPS, and the last squared change."""
    x, count = start.copy(), len(start)
    sums: dict[str, Any] = {
        name: np.empty(count) for name in ("l1", "squared_change", "largest_change")
    }
    curve: list[float] = []
    energy = 0.0
    for step in range(1, max(STEPS) + 1):
        restored = model(x)
        energy = float(np.square(x - restored).sum())
        KERNELS.energy_step(
            x, start, 2 * (x - restored), np.full(count, lam, "f"), np.full(count, rate, "f"),
            direct=None, mask=None, restored=restored if kind["tuned"] else None, first=None,
            second=None, proximal=kind["proximal"], lower=0.0, upper=1.0, **sums,
        )  # fmt: skip
        if step in STEPS:
            curve.append(_auroc(start, x, mask))
    return (energy + sums["l1"].sum()) / count, curve, float(sums["squared_change"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["brick", "gravel"])
    print(
        "| texture | lambda | step | l1 term | rate | energy | AUROC after 0, 10, 20, 60 | change |"
    )
    print("|---|---:|---|---|---:|---:|---|---:|")
    for name in parser.parse_args().names:
        model, test, mask = _setup(name)
        before = _auroc(test, model(test), mask)
        for lam in (0.05, 0.2):
            for tuned in (False, True):
                for proximal in (False, True):
                    rates = (0.02, 0.1, 0.4) if not tuned else (0.4, 2.0, 8.0)
                    runs = [
                        (
                            *_search(model, test, mask, lam, rate, tuned=tuned, proximal=proximal),
                            rate,
                        )
                        for rate in rates
                    ]
                    energy, curve, change, rate = min(runs)
                    aurocs = ", ".join(f"{value:.3f}" for value in (before, *curve))
                    kind = "tuned" if tuned else "plain"
                    way = "proximal" if proximal else "sign"
                    print(
                        f"| {name} | {lam} | {kind} | {way} | {rate} | {energy:.3f} | {aurocs} "
                        f"| {change:.1e} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
