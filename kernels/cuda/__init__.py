"""The CUDA kernels behind the `Kernels` protocol, driven on one stream of the primary context."""

from __future__ import annotations

from typing import Any

import numpy as np

from unblemish.kernels import checks
from unblemish.kernels.cuda.call import Call
from unblemish.kernels.cuda.device import Device
from unblemish.kernels.cuda.driver import Driver
from unblemish.kernels.cuda.energy_terms import CudaEnergyTerms
from unblemish.kernels.cuda.feature_terms import CudaFeatureTerms
from unblemish.kernels.cuda.image_terms import CudaImageTerms
from unblemish.kernels.cuda.part import planes
from unblemish.kernels.cuda.rgi_terms import CudaRgiTerms
from unblemish.kernels.cuda.steps import adam_step

__all__ = ["CudaKernels", "Device"]


class CudaKernels(CudaImageTerms, CudaFeatureTerms, CudaEnergyTerms, CudaRgiTerms):
    """`Kernels` on an NVIDIA GPU.

    Every argument may be a NumPy array or an array on the device: a `DeviceArray`, or whatever has
    `__dlpack__` or `__cuda_array_interface__` (torch, CuPy, ONNX Runtime, pycuda), used in place. A
    call whose outputs lie on the device returns at once; one with an output on the host waits for
    it. What other libraries write must be ordered before our `stream`: see `from_foreign`.

    The values of device arrays are not looked at: an index beyond the statistics or the bank reads
    foreign memory, a negative radius counts as what it is.

    Args:
        device: number of the GPU.
        driver: what launches; None for `PycudaDriver`.
    Raises: MissingDependencyError without pycuda; BackendError where there is no such GPU, or
        neither a fat binary nor nvcc for it.
    """

    name = "cuda"

    def __init__(self, device: int = 0, *, driver: Driver | None = None) -> None:
        if driver is None:
            from unblemish.kernels.cuda.pycuda_driver import PycudaDriver

            driver = PycudaDriver(device)
        self.device = Device(driver)

    @property
    def stream(self) -> int:
        """Handle of the stream that every launch is put on."""
        return self.device.driver.stream

    def synchronise(self) -> None:
        """Wait for everything launched. Raises: BackendError for errors of what was launched."""
        self.device.driver.synchronise()

    def rgi_closed_form(
        self, x: Any, g: Any, lam: Any, scale: Any, *, mask: Any, cotangent: Any, objective: Any
    ) -> None:
        """See `Kernels`."""
        self._closed_form(
            "rgi_closed_form", 4, x=x, g=g, lam=lam, scale=scale, mask=mask, cotangent=cotangent,
            objective=objective,
        )  # fmt: skip

    def rgi_gradient(
        self,
        x: Any,
        g: Any,
        mask: Any,
        lam: Any,
        scale: Any,
        *,
        cotangent: Any,
        mask_gradient: Any,
        objective: Any,
    ) -> None:
        """See `Kernels`."""
        self._joint(
            "rgi_gradient", 4, x=x, g=g, mask=mask, lam=lam, scale=scale, cotangent=cotangent,
            mask_gradient=mask_gradient, objective=objective,
        )  # fmt: skip

    def residual_l2(
        self, x: Any, g: Any, scale: Any, *, cotangent: Any, objective: Any, weight: Any = None
    ) -> None:
        """See `Kernels`."""
        self._residual("residual_l2", x, g, scale, cotangent, objective, weight)

    def residual_l1(
        self, x: Any, g: Any, scale: Any, *, cotangent: Any, objective: Any, weight: Any = None
    ) -> None:
        """See `Kernels`."""
        self._residual("residual_l1", x, g, scale, cotangent, objective, weight)

    def _residual(
        self, name: str, x: Any, g: Any, scale: Any, cotangent: Any, objective: Any, weight: Any
    ) -> None:
        arrays = self._arrays(
            x=x, g=g, scale=scale, cotangent=cotangent, objective=objective, weight=weight
        )
        checks.residual(name, **arrays)
        x, weight = arrays["x"], arrays["weight"]
        sizes = planes(x.shape, x.shape if weight is None else weight.shape)
        with Call(self.device, arrays, written=("cotangent", "objective")) as call:
            self._summed(call, name, sizes)

    def adam(
        self,
        p: Any,
        grad: Any,
        m: Any,
        v: Any,
        *,
        step: int,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        lower: float = float("-inf"),
        upper: float = float("inf"),
    ) -> None:
        """See `Kernels`."""
        arrays = self._arrays(p=p, grad=grad, m=m, v=v)
        checks.adam(**arrays, step=step, lower=lower, upper=upper)
        count = arrays["p"].size
        constants = adam_step(step, lr, beta1, beta2, eps, lower, upper)
        with Call(self.device, arrays, updated=("p", "m", "v")) as call:
            call.launch("adam", self.device.rows(1, count), step=constants, count=count)

    def adam_scheduled(self, p: Any, grad: Any, m: Any, v: Any, *, steps: Any, at: Any) -> None:
        """As `adam`, with constants read on the device, so that a captured launch serves all steps.

        Args:
            steps: (N, 8) float32, see `adam_steps`. at: (1,) int32, which row counts, below N.
        """
        arrays = self._arrays(p=p, grad=grad, m=m, v=v, steps=steps, at=at)
        moved = {name: arrays[name] for name in ("p", "grad", "m", "v")}
        checks.adam(**moved, step=1, lower=0.0, upper=0.0)
        count = arrays["p"].size
        with Call(self.device, arrays, updated=("p", "m", "v")) as call:
            call.launch("adam_scheduled", self.device.rows(1, count), count=count)

    def project_ball(self, p: Any, *, centre: Any, radius: Any) -> None:
        """See `Kernels`."""
        arrays = self._arrays(p=p, centre=centre, radius=radius)
        checks.project_ball(**arrays)
        batch, length = arrays["p"].shape
        grid = self.device.rows(batch, length, 1)
        sizes = {"batch": batch, "length": length}
        with Call(self.device, arrays, updated=("p",)) as call:
            partial = call.partial("sum", batch, grid)
            squared = self.device.scratch("squared", (batch,), np.float64)
            call.arrays["squared"] = squared
            call.launch("squared_distance", grid, partial=partial, **sizes)
            call.finish(partial, "squared")
            call.launch("project_ball", grid, **sizes)

    def hold(
        self, g: Any, before: Any, mask: Any, scale: Any, *, cotangent: Any, objective: Any
    ) -> None:
        """Add scale * sum (M (g - before))^2 to the objective, and its derivative to the cotangent.

        Args:
            g, before: (B, C, h, w) float32. mask: M, (B, 1 or C, h, w). scale: (B,).
            cotangent: as g, added to. objective: (B,) float64, added to.
        """
        arrays = self._arrays(
            g=g, before=before, mask=mask, scale=scale, cotangent=cotangent, objective=objective
        )
        checks.hold(**arrays)
        sizes = planes(arrays["g"].shape, arrays["mask"].shape)
        grid = self.device.rows(sizes["batch"], sizes["plane"])
        with Call(self.device, arrays, updated=("cotangent", "objective")) as call:
            partial = call.partial("sum", sizes["batch"], grid)
            call.launch("hold", grid, partial=partial, **sizes)
            call.finish(partial, "objective", scale="scale", added=True)

    def adam_chunks(self, p: Any, m: Any, v: Any, *, table: Any, steps: Any, at: Any) -> None:
        """As `adam_scheduled`, of arrays whose gradient lies in pieces, in one launch.

        Args:
            p, m, v: (1, n) float32. steps, at: see `adam_scheduled`.
            table: (N, 3) uint64: address of a piece, where it belongs in p, its length.
        """
        arrays = self._arrays(p=p, m=m, v=v, table=table, steps=steps, at=at)
        checks.adam_chunks(**{name: arrays[name] for name in ("p", "m", "v", "table")})
        with Call(self.device, arrays, updated=("p", "m", "v")) as call:
            grid, chunks = self._chunks(arrays["table"])
            call.launch("adam_chunks", grid, chunks=chunks)

    def void_chunks(self, table: Any, *, objective: Any) -> None:
        """Make the objective, (1,) float64, NaN where a piece of a gradient is not finite."""
        arrays = self._arrays(table=table, objective=objective)
        checks.void_chunks(**arrays)
        with Call(self.device, arrays, updated=("objective",)) as call:
            grid, chunks = self._chunks(arrays["table"])
            call.launch("void_chunks", grid, chunks=chunks)

    def _chunks(self, table: Any) -> tuple[tuple[int, int], int]:
        chunks = int(table.shape[0])
        return (min(chunks, self.device.most_blocks), 1), chunks

    def norms(self, x: Any, *, squared: Any, largest: Any) -> None:
        """See `Kernels`."""
        arrays = self._arrays(x=x, squared=squared, largest=largest)
        checks.norms(**arrays)
        batch = arrays["x"].shape[0]
        length = arrays["x"].size // batch
        grid = self.device.rows(batch, length)
        with Call(self.device, arrays, written=("squared", "largest")) as call:
            parts = call.partial("sum", batch, grid), call.partial("peak", batch, grid)
            call.launch(
                "norms", grid, squared=parts[0], largest=parts[1], batch=batch, length=length
            )
            call.finish_norms(*parts, "squared", "largest")

    def all_finite(self, x: Any) -> bool:
        """See `Kernels`; waits for the answer. `flag_finite` does not."""
        flag = self.device.scratch("finite", (1,), np.int32)
        self.flag_finite(x, finite=flag)
        return bool(self.device.to_host(flag)[0])

    def flag_finite(self, x: Any, *, finite: Any) -> None:
        """Write 1 to `finite`, (1,) int32 on the device, or 0 where not all of x is finite."""
        arrays = self._arrays(x=x, finite=finite)
        checks.all_finite(arrays["x"])
        count = arrays["x"].size
        with Call(self.device, arrays) as call:
            self.device.driver.fill(arrays["finite"].pointer, 1, 1)
            call.launch("all_finite", self.device.rows(1, count, 1), count=count)
