"""What RGI has on the device beside the protocol: absolute residuals, and the prior of latents."""

from __future__ import annotations

from typing import Any

from unblemish.kernels import checks
from unblemish.kernels.cuda.call import Call
from unblemish.kernels.cuda.part import Part, planes


class CudaRgiTerms(Part):
    """Kernels whose host side is NumPy, `methods.losses` and `methods.joint`."""

    def rgi_closed_form_l1(
        self, x: Any, g: Any, lam: Any, scale: Any, *, mask: Any, cotangent: Any, objective: Any
    ) -> None:
        """As `rgi_closed_form`, of min over M of |1 - M| sum |r| + lam |M|: M is 0 or 1.

        Source: seed 000, eq. 3.
        """
        arrays = self._arrays(
            x=x, g=g, lam=lam, scale=scale, mask=mask, cotangent=cotangent, objective=objective
        )
        checks.rgi_closed_form(**arrays)
        sizes = planes(arrays["x"].shape, arrays["mask"].shape)
        with Call(self.device, arrays, written=("mask", "cotangent", "objective")) as call:
            self._summed_l1(call, "rgi_closed_form_l1", sizes)

    def rgi_gradient_l1(
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
        """As `rgi_gradient`, of scale (sum |1 - M| |r| + lam sum |M|)."""
        arrays = self._arrays(
            x=x, g=g, mask=mask, lam=lam, scale=scale, cotangent=cotangent,
            mask_gradient=mask_gradient, objective=objective,
        )  # fmt: skip
        checks.rgi_gradient(**arrays)
        sizes = planes(arrays["x"].shape, arrays["mask"].shape)
        with Call(self.device, arrays, written=("cotangent", "mask_gradient", "objective")) as call:
            self._summed_l1(call, "rgi_gradient_l1", sizes)

    def _summed_l1(self, call: Call, kernel: str, sizes: dict[str, int]) -> None:
        grid = self.device.rows(sizes["batch"], sizes["plane"], 1)
        partial = call.partial("sum", sizes["batch"], grid)
        call.launch(kernel, grid, partial=partial, **sizes)
        call.finish(partial, "objective", scale="scale")

    def latent_prior(self, z: Any, weight: float, *, gradient: Any, objective: Any) -> None:
        """Add weight mean z^2 to `objective` (B,) and its slope to `gradient`, (B, ...) as z.

        The objective of an item whose gradient is not finite becomes infinite.
        """
        arrays = self._arrays(z=z, gradient=gradient, objective=objective)
        checks.latent_prior(**arrays)
        batch = arrays["z"].shape[0]
        with Call(self.device, arrays, updated=("gradient", "objective")) as call:
            size = arrays["z"].size // batch
            call.launch("latent_prior", (batch, 1), weight=weight, size=size)
