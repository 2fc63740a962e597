"""Every operation once on small arrays of awkward size: what a sanitizer is run over.

    compute-sanitizer --tool memcheck python benchmarks/gpu_once.py

Exits with 1 where a result is far from the float64 reference.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from kernel_jobs import between_passes, energy_terms, feature_terms, image_terms, solvers
from kernel_jobs.job import Job
from kernel_jobs.on_device import Doubled, error

from unblemish.bundle.manifest import Preprocess
from unblemish.kernels import Kernels
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.device.frames import DeviceFrames
from unblemish.runtime.device.steps.lbfgs import DeviceLbfgs
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.membrane import roughness
from unblemish.runtime.solvers.lbfgs import Lbfgs

# float32 against float64, over the largest number of an output; a wrong kernel is off by far more.
TOLERANCE = 1e-4


def jobs() -> list[Job]:
    """All operations; sizes that are no multiple of a vector, a block or a tile."""
    return [
        *solvers.jobs((2, 3, 33, 35)),
        *energy_terms.jobs((2, 3, 33, 35)),
        *image_terms.jobs(33, 35),
        feature_terms.mahalanobis(37, 45),
        feature_terms.mahalanobis_low_rank(37, 45, 7),
        *feature_terms.bank_jobs(37, 45, 150, 9),
    ]


def wide() -> list[Job]:
    """Neighbours and windows that fit into no tile of shared memory."""
    x, g = (np.random.default_rng(seed).random((2, 3, 33, 35), np.float32) for seed in (0, 1))
    table, shown = np.empty((2, 29 * 29, 33, 35), np.float16), np.empty((2, 1, 33, 35), np.float32)
    shared, directly = np.empty_like(x), np.empty_like(x)
    slopes, value, one = [np.empty_like(x), np.empty_like(x)], np.empty(2), np.ones(2, np.float32)
    far: Any = {"radius": 14, "sigma_space": 400.0, "sigma_colour": 3.0}

    def share(k: Kernels) -> None:
        k.sharing_weights(x, **far, weights=table)
        k.share_gradient(g, table, radius=14, shared=shared)
        k.share_gradient_direct(g, x, **far, shared=directly)

    def dssim(k: Kernels) -> None:
        k.dssim(
            x, g, one, data_range=1.0, dissimilarity=shown, direct=slopes[0],
            cotangent=slopes[1], objective=value, window=33, sigma=5.0,
        )  # fmt: skip

    return [
        Job("sharing, wide", share, lambda: None, 0, [shared, directly]),
        Job("dssim, wide", dssim, lambda: None, 0, [shown, *slopes, value]),
    ]


def frames(kernels: CudaKernels) -> float:
    """Largest difference of preprocessing to the CPU's."""
    p: Any = Preprocess(width=33, height=47, channels=3, low=-1.0, high=1.0, geometry="letterbox")
    frame = np.random.default_rng(0).integers(0, 256, (61, 40, 3), np.uint8)
    found = DeviceFrames(kernels.device, p, frame.shape, frame.dtype).enqueue([frame])
    return float(np.abs(kernels.device.to_host(found) - Geometry(p).to_model(frame)).max())


def holes(kernels: CudaKernels) -> float:
    """Largest relative difference of a hole's roughness to the CPU's; the hole is then filled."""
    rng = np.random.default_rng(0)
    x, made = (rng.random((2, 3, 33, 35), dtype=np.float32) for _ in range(2))
    free = np.zeros((2, 1, 33, 35), np.float32)
    free[:, :, 3:17, 5:30] = 1
    rough, change = np.empty(2), np.empty(2)
    expected = roughness(x - made, free != 0)
    kernels.blend(
        x, made, free, ended=np.zeros(2, np.int32), roughness=rough, largest_change=change,
        lower=0.0, upper=1.0,
    )  # fmt: skip
    return float(np.abs(rough / expected - 1).max())


def finetuning(kernels: CudaKernels) -> float:
    """Largest relative error of what fine-tuning adds to an objective."""
    rng = np.random.default_rng(0)
    g, before, mask, slope = (rng.random((2, 3, 33, 35), dtype=np.float32) for _ in range(4))
    scale, value = np.ones(2, np.float32), np.zeros(2)
    kernels.hold(g, before, mask, scale, cotangent=slope, objective=value)
    expected = np.square(mask.astype(np.float64) * (g - before)).sum(axis=(1, 2, 3))
    return float(np.abs(value / expected - 1).max())


def latents(kernels: CudaKernels) -> float:
    """Distance of L-BFGS from the minimum of a bowl whose axes differ by a factor of 100."""
    device, weight = kernels.device, np.logspace(0, 2, 37)
    z = np.random.default_rng(0).normal(size=(3, 37)).astype(np.float32)
    query, gradient = device.empty(z.shape), device.empty(z.shape)
    value, ended = device.empty((3,), np.float64), device.zeros((3,), np.int32)
    solver = DeviceLbfgs(device, Lbfgs(scale=weight**-0.25), query, gradient)
    solver.start(z)
    for _ in range(30):
        asked = device.to_host(query).astype(np.float64)
        device.upload(value, (weight * asked**2).sum(axis=1))
        device.upload(gradient, (2 * weight * asked).astype(np.float32))
        solver.step(value, ended)
        solver.aim(ended)
    return float(np.abs(device.to_host(query)).max())


def terms(kernels: CudaKernels) -> float:
    """Largest relative error of absolute residuals, and of what else may join RGI's objective."""
    rng = np.random.default_rng(0)
    x, g, out = (rng.random((2, 3, 33, 35), dtype=np.float32) for _ in range(3))
    mask, slope = (rng.random((2, 1, 33, 35), dtype=np.float32) for _ in range(2))
    one, lam, value = np.ones(2, np.float32), np.full(2, 0.5, np.float32), np.zeros(2)
    size = np.abs(g.astype(np.float64) - x).sum(axis=1)
    found, expected = [], []
    arguments = {"cotangent": out, "objective": value}
    kernels.rgi_gradient_l1(x, g, mask, lam, one, mask_gradient=slope, **arguments)
    found.append(value.copy())
    expected.append(((1 - mask[:, 0]) * size + 0.5 * mask[:, 0]).sum(axis=(1, 2)))
    kernels.rgi_closed_form_l1(x, g, lam, one, mask=mask, **arguments)
    found.append(value.copy())
    expected.append(np.minimum(size, 0.5).sum(axis=(1, 2)))
    kernels.disbelief(x.reshape(2, -1), 1.0, slope=out.reshape(2, -1), objective=value)
    kernels.latent_prior(x.reshape(2, -1), 1.0, gradient=g.reshape(2, -1), objective=value)
    kernels.keep_unmasked(x, mask, kept=out)
    kernels.add_values(value, objective=value.copy())
    found.append(value - found[1])
    wide = x.reshape(2, -1).astype(np.float64)
    expected.append((np.logaddexp(0, -wide) + wide**2).mean(axis=1))
    return float(np.abs(np.divide(found, expected) - 1).max())


def main() -> None:
    kernels = CudaKernels()
    found = {job.name: error(job, Doubled(kernels)) for job in [*jobs(), *wide()]}
    found["frames"] = frames(kernels)
    found["holes"] = holes(kernels)
    found["finetuning"] = finetuning(kernels)
    found["latents"] = latents(kernels)
    found["terms"] = terms(kernels)
    found["views"] = between_passes.views(kernels)
    found["cells"] = between_passes.cells(kernels)
    for name, value in found.items():
        print(f"{name:40} {value:.1e}{'' if value <= TOLERANCE else '   FAR OFF'}")
    sys.exit(int(max(found.values()) > TOLERANCE))


if __name__ == "__main__":
    main()
