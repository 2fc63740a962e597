"""Every operation once on small arrays of awkward size: what a sanitizer is run over.

    compute-sanitizer --tool memcheck python benchmarks/gpu_once.py

Exits with 1 where a result is far from the float64 reference.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from kernel_jobs import energy_terms, feature_terms, image_terms, solvers
from kernel_jobs.job import Job
from kernel_jobs.on_device import Doubled, error

from unblemish.bundle.manifest import Preprocess
from unblemish.kernels import Kernels
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.device.frames import DeviceFrames
from unblemish.runtime.geometry import Geometry

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


def main() -> None:
    kernels = CudaKernels()
    found = {job.name: error(job, Doubled(kernels)) for job in [*jobs(), *wide()]}
    found["frames"] = frames(kernels)
    for name, value in found.items():
        print(f"{name:40} {value:.1e}{'' if value <= TOLERANCE else '   FAR OFF'}")
    sys.exit(int(max(found.values()) > TOLERANCE))


if __name__ == "__main__":
    main()
