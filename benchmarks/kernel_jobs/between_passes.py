"""What lies between a detector's passes, once each on small arrays of awkward size."""

from __future__ import annotations

from typing import Any

import numpy as np

from unblemish.kernels.cuda import CudaKernels
from unblemish.runtime.device.detectors.projection import DeviceView, ViewTables
from unblemish.runtime.methods.decomposition import View
from unblemish.runtime.workspace import Workspace


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
