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
from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.device.frames import DeviceFrames
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.membrane import roughness

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


def main() -> None:
    kernels = CudaKernels()
    found = {job.name: error(job, Doubled(kernels)) for job in jobs()}
    found["frames"] = frames(kernels)
    found["holes"] = holes(kernels)
    for name, value in found.items():
        print(f"{name:40} {value:.1e}{'' if value <= TOLERANCE else '   FAR OFF'}")
    sys.exit(int(max(found.values()) > TOLERANCE))


if __name__ == "__main__":
    main()
