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
from unblemish.runtime.device.projection import DeviceView, ViewTables
from unblemish.runtime.geometry import Geometry
from unblemish.runtime.methods.decomposition import View
from unblemish.runtime.workspace import Workspace

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


def views(kernels: CudaKernels) -> float:
    """Largest difference of windows seen as crops, and of the way back, to the CPU's."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Any:
        return rng.random(shape, dtype=np.float32)

    view = View(random(1, 3, 33, 35), random(1, 3, 17, 19), random(1, 17, 33) / 17,
                random(1, 35, 19) / 19, 0.3)  # fmt: skip
    windows, items, device = random(2, 3, 33, 35), np.zeros(2, np.intp), kernels.device
    held, crops = device.to_device(windows), device.zeros((2, 3, 17, 19))
    on_device = DeviceView(device, ViewTables.of(view), device.scratch)
    on_device.project(held, crops)
    seen = view.project(windows, items, Workspace())
    apart = np.abs(device.to_host(crops) - seen).max()
    back = np.empty_like(windows)
    view.pull_back(seen, items, back, Workspace())
    on_device.pull_back(crops, held)
    return float(max(apart, np.abs(device.to_host(held) - back).max()))


def cells(kernels: CudaKernels) -> float:
    """Largest difference of what lies between a detector's passes to NumPy."""
    rng, device = np.random.default_rng(0), kernels.device
    crop, whole = (rng.random(s, dtype=np.float32) for s in ((4, 5, 7), (9, 11, 7)))
    rows = rng.integers(0, 20, 33).astype(np.int32)
    held = [device.to_device(a) for a in (crop, whole, rows)]
    sizes = ((4, 5, 7), (33, 4), (33,), (33,), (33, 7))
    more, taken, value, total, spread = (device.zeros(shape) for shape in sizes)
    sums, grid = device.zeros((1, 1), np.float64), (1, 1)
    device.launch("learn_surroundings", grid, whole=held[1], features=held[0], correction=more,
                  top=2, left=3, width=11, rows=4, columns=5, channels=7)  # fmt: skip
    device.launch("add_row", grid, x=held[0], row=more, batch=1, length=crop.size)
    part = {"count": 33, "channels": 7, "from": 2, "width": 4}
    device.launch("take_rows", grid, x=held[0], rows=held[2], out=taken, **part)
    device.launch("surprise", grid, likelihood=taken, typical=total, surprise=value, slope=taken,
                  count=33)  # fmt: skip
    device.launch("add_taken", grid, value=value, of=held[2], scores=total, count=33, fresh=1)
    device.launch("sum_rows", grid, x=total, partial=sums, batch=1, length=33)
    device.launch("spread_rows", grid, rows=taken, of=held[2], x=spread, **part)
    known = whole[2:6, 3:8].reshape(20, 7)[rows][:, 2:6]
    expected = np.logaddexp(0, -known.reshape(-1)[:33].astype(np.float64))[rows]
    return float(abs(device.to_host(sums)[0, 0] / expected.sum() - 1))


def main() -> None:
    kernels = CudaKernels()
    found = {job.name: error(job, Doubled(kernels)) for job in jobs()}
    found["frames"] = frames(kernels)
    found["views"] = views(kernels)
    found["cells"] = cells(kernels)
    for name, value in found.items():
        print(f"{name:40} {value:.1e}{'' if value <= TOLERANCE else '   FAR OFF'}")
    sys.exit(int(max(found.values()) > TOLERANCE))


if __name__ == "__main__":
    main()
