"""What RGI has on the device beside the protocol: absolute residuals, priors, further terms."""

from __future__ import annotations

from typing import Any

from unblemish.kernels import checks, rgi_checks
from unblemish.kernels.cuda.call import Call
from unblemish.kernels.cuda.part import Part, planes


class CudaRgiTerms(Part):
    """Kernels whose host side is NumPy: `methods.losses`, `methods.joint` and `methods.terms`."""

    def rgi_closed_form_l1(
        self, x: Any, g: Any, lam: Any, scale: Any, *, mask: Any, cotangent: Any, objective: Any
    ) -> None:
        """As `rgi_closed_form`, of min over M of |1 - M| sum |r| + lam |M|: M is 0 or 1.

        Source: seed 000, eq. 3.
        """
        self._closed_form(
            "rgi_closed_form_l1", 1, x=x, g=g, lam=lam, scale=scale, mask=mask,
            cotangent=cotangent, objective=objective,
        )  # fmt: skip

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
        self._joint(
            "rgi_gradient_l1", 1, x=x, g=g, mask=mask, lam=lam, scale=scale, cotangent=cotangent,
            mask_gradient=mask_gradient, objective=objective,
        )  # fmt: skip

    def _closed_form(self, kernel: str, width: int, **given: Any) -> None:
        """width: elements that a lane takes at once."""
        arrays = self._arrays(**given)
        checks.rgi_closed_form(**arrays)
        sizes = planes(arrays["x"].shape, arrays["mask"].shape)
        with Call(self.device, arrays, written=("mask", "cotangent", "objective")) as call:
            self._summed(call, kernel, sizes, width)

    def _joint(self, kernel: str, width: int, **given: Any) -> None:
        arrays = self._arrays(**given)
        checks.rgi_gradient(**arrays)
        sizes = planes(arrays["x"].shape, arrays["mask"].shape)
        with Call(self.device, arrays, written=("cotangent", "mask_gradient", "objective")) as call:
            self._summed(call, kernel, sizes, width)

    def _summed(self, call: Call, kernel: str, sizes: dict[str, int], width: int = 4) -> None:
        grid = self.device.rows(sizes["batch"], sizes["plane"], width)
        partial = call.partial("sum", sizes["batch"], grid)
        call.launch(kernel, grid, partial=partial, **sizes)
        call.finish(partial, "objective", scale="scale")

    def latent_prior(self, z: Any, weight: float, *, gradient: Any, objective: Any) -> None:
        """Add weight mean z^2 to `objective` (B,) and its slope to `gradient`, (B, ...) as z.

        The objective of an item whose gradient is not finite becomes infinite.
        """
        arrays = self._arrays(z=z, gradient=gradient, objective=objective)
        rgi_checks.latent_prior(**arrays)
        batch = arrays["z"].shape[0]
        with Call(self.device, arrays, updated=("gradient", "objective")) as call:
            size = arrays["z"].size // batch
            call.launch("latent_prior", (batch, 1), weight=weight, size=size)

    def disbelief(self, logit: Any, weight: float, *, slope: Any, objective: Any) -> None:
        """Add weight mean softplus(-t) over the logits (B, ...) to `objective` (B,).

        Args:
            slope: as `logit`; the derivative is written there.
        """
        arrays = self._arrays(logit=logit, slope=slope, objective=objective)
        rgi_checks.disbelief(**arrays)
        batch = arrays["logit"].shape[0]
        with Call(self.device, arrays, written=("slope",), updated=("objective",)) as call:
            call.launch("disbelief", (batch, 1), weight=weight, size=arrays["logit"].size // batch)

    def keep_unmasked(self, x: Any, mask: Any, *, kept: Any, added: bool = False) -> None:
        """Write (1 - mask) x to `kept`, or add it there; mask: (B, 1 or C, H, W), None for 0."""
        arrays = self._arrays(x=x, mask=mask, kept=kept)
        rgi_checks.keep_unmasked(**arrays)
        shape = arrays["x"].shape
        sizes = planes(shape, shape if mask is None else arrays["mask"].shape)
        grid = self.device.rows(sizes["batch"], sizes["plane"], 1)
        with Call(self.device, arrays, updated=("kept",)) as call:
            call.launch("keep_unmasked", grid, added=int(added), **sizes)

    def add_values(self, more: Any, *, objective: Any) -> None:
        """Add values (B,) float64 to `objective`."""
        arrays = self._arrays(more=more, objective=objective)
        rgi_checks.add_values(**arrays)
        batch = arrays["objective"].size
        with Call(self.device, arrays, updated=("objective",)) as call:
            call.launch("add_values", self.device.rows(1, batch, 1), batch=batch)
