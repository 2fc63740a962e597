"""`EnergyTerms` by the CUDA kernels."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from unblemish.errors import BackendError
from unblemish.kernels import energy_checks as checks
from unblemish.kernels.cuda.call import Call
from unblemish.kernels.cuda.part import Part, planes, sides
from unblemish.kernels.cuda.steps import adam_step, dssim_constants, gaussian_window
from unblemish.kernels.device_array import DeviceArray

_SIDE = 16  # pixels of a tile of dssim.cu
_NARROW = 31  # the widest window whose tile is brought to shared memory as a whole
_WEIGH_STEP, _PROXIMAL = 1, 2


class CudaEnergyTerms(Part):
    """See `EnergyTerms`. Part of `CudaKernels`, which makes the device."""

    _windows: dict[tuple[int, float], DeviceArray]

    def dssim(
        self,
        x: Any,
        g: Any,
        scale: Any,
        *,
        data_range: float,
        dissimilarity: Any,
        direct: Any,
        cotangent: Any,
        objective: Any,
        window: int = 11,
        sigma: float = 1.5,
    ) -> None:
        """See `EnergyTerms`."""
        arrays = self._arrays(
            x=x, g=g, scale=scale, dissimilarity=dissimilarity, direct=direct, cotangent=cotangent,
            objective=objective,
        )  # fmt: skip
        checks.dssim(**arrays, data_range=data_range, window=window, sigma=sigma)
        weights = self._window(window, sigma)
        wide = "_wide" if window > _NARROW else ""
        batch, channels, height, width = arrays["x"].shape
        tiles = -(-height // _SIDE) * -(-width // _SIDE) * _SIDE**2
        written = ("dissimilarity", "direct", "cotangent", "objective")
        slopes = None
        with Call(self.device, arrays, written=written) as call:
            if arrays["direct"] is not None or arrays["cotangent"] is not None:
                shape = (batch, channels, 4, height, width)
                slopes = self.device.scratch("slopes", shape, np.float32)
            grid = self.device.rows(batch, tiles, 1)
            partial = call.partial("sum", batch, grid)
            more = {"weights": weights, "radius": window // 2, "slopes": slopes}
            more |= sides(arrays["x"].shape)
            call.launch(
                f"dssim{wide}", grid, partial=partial, map=call.arrays["dissimilarity"],
                constants=dssim_constants(data_range), **more,
            )  # fmt: skip
            call.finish(partial, "objective", scale="scale")
            if slopes is not None:
                grid = self.device.rows(batch * channels, tiles, 1)
                call.launch(f"dssim_gradient{wide}", grid, **more)

    def _window(self, side: int, sigma: float) -> DeviceArray:
        """The window's weights on the device, made once."""
        windows = self.__dict__.setdefault("_windows", {})
        held: DeviceArray | None = windows.get((side, sigma))
        if held is None:
            if self.device.driver.capturing:
                raise BackendError(
                    f"dssim met the window ({side}, {sigma}) first while a CUDA graph is captured. "
                    "Run the step once before it is captured."
                )
            held = windows[side, sigma] = self.device.to_device(gaussian_window(side, sigma))
        return held

    def gaussian_nll(
        self,
        x: Any,
        g: Any,
        log_scale: Any,
        scale: Any,
        *,
        cotangent: Any,
        log_scale_cotangent: Any,
        objective: Any,
    ) -> None:
        """See `EnergyTerms`."""
        arrays = self._arrays(
            x=x, g=g, log_scale=log_scale, scale=scale, cotangent=cotangent,
            log_scale_cotangent=log_scale_cotangent, objective=objective,
        )  # fmt: skip
        checks.gaussian_nll(**arrays)
        sizes = planes(arrays["x"].shape, arrays["log_scale"].shape)
        grid = self.device.rows(sizes["batch"], sizes["plane"])
        written = ("cotangent", "log_scale_cotangent", "objective")
        with Call(self.device, arrays, written=written) as call:
            partial = call.partial("sum", sizes["batch"], grid)
            call.launch("gaussian_nll", grid, partial=partial, **sizes)
            call.finish(partial, "objective", scale="scale")

    def energy_step(
        self,
        x: Any,
        start: Any,
        pulled: Any,
        lam: Any,
        rate: Any,
        *,
        direct: Any,
        mask: Any,
        restored: Any,
        first: Any,
        second: Any,
        l1: Any,
        squared_change: Any,
        largest_change: Any,
        step: int = 1,
        direct_factor: float = 1.0,
        weigh_step: bool = False,
        proximal: bool = False,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        lower: float = float("-inf"),
        upper: float = float("inf"),
    ) -> None:
        """See `EnergyTerms`."""
        sums = {"l1": l1, "squared_change": squared_change, "largest_change": largest_change}
        arrays = self._arrays(
            x=x, start=start, pulled=pulled, lam=lam, rate=rate, direct=direct, mask=mask,
            restored=restored, first=first, second=second, **sums,
        )  # fmt: skip
        checks.energy_step(
            **arrays, step=step, beta1=beta1, beta2=beta2, eps=eps, lower=lower, upper=upper
        )
        constants = adam_step(step, 1.0, beta1, beta2, eps, lower, upper)
        flags = _WEIGH_STEP * weigh_step + _PROXIMAL * proximal
        self._energy("energy_step", arrays, sums, adam=constants, direct_factor=direct_factor,
                     flags=flags)  # fmt: skip

    def energy_step_scheduled(
        self,
        x: Any,
        start: Any,
        pulled: Any,
        lam: Any,
        rate: Any,
        *,
        direct: Any,
        mask: Any,
        restored: Any,
        first: Any,
        second: Any,
        l1: Any,
        squared_change: Any,
        largest_change: Any,
        steps: Any,
        at: Any,
        direct_factor: float = 1.0,
    ) -> None:
        """As `energy_step`, with constants read on the device: a captured launch serves all steps.

        Args:
            steps: (N, 8) float32, see `adam_steps`, for a rate of 1.
            at: (1,) int32, the step settled last, from -1 on: row at + 1 counts.
        """
        sums = {"l1": l1, "squared_change": squared_change, "largest_change": largest_change}
        arrays = self._arrays(
            x=x, start=start, pulled=pulled, lam=lam, rate=rate, direct=direct, mask=mask,
            restored=restored, first=first, second=second, **sums,
        )  # fmt: skip
        checks.energy_step(**arrays, step=1, beta1=0.0, beta2=0.0, eps=0.0, lower=0.0, upper=0.0)
        arrays |= self._arrays(steps=steps, at=at)
        self._energy("energy_step_scheduled", arrays, sums, direct_factor=direct_factor, flags=0)

    def _energy(
        self, kernel: str, arrays: dict[str, Any], sums: Collection[str], **numbers: Any
    ) -> None:
        sizes = planes(arrays["x"].shape)
        batch = sizes["batch"]
        mask_channels = 1 if arrays["mask"] is None else arrays["mask"].shape[1]
        grid = self.device.rows(batch, sizes["plane"])
        with Call(self.device, arrays, written=sums, updated=("x", "first", "second")) as call:
            distance, squared, largest = (
                call.partial(n, batch, grid) for n in ("sum", "two", "peak")
            )
            call.launch(
                kernel, grid, distance=distance, squared=squared, largest=largest,
                mask_channels=mask_channels, **numbers, **sizes,
            )  # fmt: skip
            call.finish(distance, "l1", scale="lam")
            call.finish_norms(squared, largest, "squared_change", "largest_change")

    def half_variance(self, log_scale: Any, *, out: Any) -> None:
        """Write exp(2 s) of every element s of `log_scale`, (B, C, h, w) float32 both."""
        arrays = self._arrays(log_scale=log_scale, out=out)
        checks.half_variance(**arrays)
        count = arrays["out"].size
        with Call(self.device, arrays, written=("out",)) as call:
            call.launch("half_variance", self.device.rows(1, count), count=count)

    def blend(
        self,
        x: Any,
        made: Any,
        free: Any,
        *,
        ended: Any,
        roughness: Any,
        largest_change: Any,
        lower: float,
        upper: float,
    ) -> None:
        """A turn of `Blending` in place: what holes hold becomes `made`, joined at the rim.

        Args:
            x, made: (B, C, h, w) float32. free: (B, 1, h, w) float32, 0 where pixels are known.
            ended: (B,) int32; items where it is not 0 stay, and so do their results.
            roughness: (B,) float64, written: that of x - made before, see `membrane.roughness`.
            largest_change: (B,) float64, written: of x.
        """
        sums = {"roughness": roughness, "largest_change": largest_change}
        arrays = self._arrays(x=x, made=made, free=free, ended=ended, **sums)
        checks.blend(**arrays, lower=lower, upper=upper)
        batch, channels, height, width = arrays["x"].shape
        grid = (channels, batch)
        with Call(self.device, arrays, written=sums, updated=("x",)) as call:
            parts = call.partial("sum", batch, grid), call.partial("peak", batch, grid)
            plates = self.device.scratch("plates", (5, *arrays["x"].shape), np.float32)
            call.launch(
                "blend", grid, roughness=parts[0], largest=parts[1], plates=plates, lower=lower,
                upper=upper, height=height, width=width,
            )  # fmt: skip
            call.finish_norms(*parts, "roughness", "largest_change")
