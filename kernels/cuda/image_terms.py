"""`ImageTerms` by the CUDA kernels."""

from __future__ import annotations

import math
from typing import Any

from unblemish.kernels import image_checks as checks
from unblemish.kernels.cuda.call import Call
from unblemish.kernels.cuda.part import Part, planes, sides
from unblemish.kernels.cuda.steps import adan_step, inverse

# Of sharing.cu: rows and columns of a tile, and the floats of shared memory for it and its halo.
_DOWN, _ACROSS = 8, 32
_ROOM = 6144
_LARGEST_SPACE = 25 * math.log(2.0)  # see sharing.hpp


class CudaImageTerms(Part):
    """See `ImageTerms`. Part of `CudaKernels`, which makes the device."""

    def total_variation(self, n: Any, weight: Any, *, gradient: Any, value: Any) -> None:
        """See `ImageTerms`."""
        arrays = self._arrays(n=n, weight=weight, gradient=gradient, value=value)
        checks.total_variation(**arrays)
        self._added("total_variation", arrays, 1, **sides(arrays["n"].shape))

    def log_penalty(
        self, x: Any, n: Any, weight: Any, free: Any, *, epsilon: float, gradient: Any, value: Any
    ) -> None:
        """See `ImageTerms`."""
        arrays = self._arrays(x=x, n=n, weight=weight, free=free, gradient=gradient, value=value)
        checks.log_penalty(**arrays, epsilon=epsilon)
        self._added("log_penalty", arrays, 4, epsilon=epsilon, **planes(arrays["n"].shape))

    def mixture_prior(
        self,
        n: Any,
        means: Any,
        precisions: Any,
        weight: Any,
        free: Any,
        *,
        gradient: Any,
        value: Any,
    ) -> None:
        """See `ImageTerms`."""
        arrays = self._arrays(
            n=n, means=means, precisions=precisions, weight=weight, free=free, gradient=gradient,
            value=value,
        )  # fmt: skip
        checks.mixture_prior(**arrays)
        components = arrays["means"].shape[0]
        self._added("mixture_prior", arrays, 1, components=components, **planes(arrays["n"].shape))

    def _added(self, kernel: str, arrays: dict[str, Any], lanes: int, **numbers: Any) -> None:
        """Add a term to gradient and value."""
        batch, _, *size = arrays["n"].shape
        grid = self.device.rows(batch, size[0] * size[1], lanes)
        with Call(self.device, arrays, updated=("gradient", "value")) as call:
            partial = call.partial("sum", batch, grid)
            call.launch(kernel, grid, partial=partial, **numbers)
            call.finish(partial, "value", scale="weight", added=True)

    def sharing_weights(
        self, x: Any, *, radius: int, sigma_space: float, sigma_colour: float, weights: Any
    ) -> None:
        """See `ImageTerms`."""
        arrays = self._arrays(x=x, weights=weights)
        settings = {"sigma_space": sigma_space, "sigma_colour": sigma_colour}
        checks.sharing_weights(**arrays, radius=radius, **settings)
        reach = _reach(radius, sigma_space)
        numbers = {"radius": radius, **_falloff(**settings)}
        self._share("sharing_weights", arrays, "x", reach, numbers)

    def share_gradient(self, gradient: Any, weights: Any, *, radius: int, shared: Any) -> None:
        """See `ImageTerms`."""
        arrays = self._arrays(gradient=gradient, weights=weights, shared=shared)
        checks.share_gradient(**arrays, radius=radius)
        self._share("share_gradient", arrays, "gradient", radius, {"radius": radius})

    def share_gradient_direct(
        self,
        gradient: Any,
        x: Any,
        *,
        radius: int,
        sigma_space: float,
        sigma_colour: float,
        shared: Any,
    ) -> None:
        """See `ImageTerms`."""
        arrays = self._arrays(gradient=gradient, x=x, shared=shared)
        settings = {"sigma_space": sigma_space, "sigma_colour": sigma_colour}
        checks.share_gradient_direct(**arrays, radius=radius, **settings)
        reach = _reach(radius, sigma_space)
        numbers = {"radius": radius, **_falloff(**settings)}
        self._share("share_gradient_direct", arrays, "x", reach, numbers, images=2)

    def _share(
        self,
        kernel: str,
        arrays: dict[str, Any],
        image: str,
        reach: int,
        numbers: dict[str, float],
        images: int = 1,
    ) -> None:
        """By tiles in shared memory where those of so many images fit, else from the caches."""
        batch, channels, height, width = arrays[image].shape
        reach = min(reach, max(height, width) - 1)
        halo = (_DOWN + 2 * reach) * (_ACROSS + 2 * reach)
        wide = "_wide" if images * channels * halo > _ROOM else ""
        tiles = -(-height // _DOWN) * -(-width // _ACROSS)
        grid = self.device.rows(batch, tiles * _DOWN * _ACROSS, 1)
        out = "shared" if "shared" in arrays else "weights"
        with Call(self.device, arrays, written=(out,)) as call:
            more = {"reach": reach, **numbers, **sides(arrays[image].shape)}
            call.launch(f"{kernel}{wide}", grid, **more)

    def adan(
        self,
        n: Any,
        x: Any,
        g: Any,
        first: Any,
        slope: Any,
        second: Any,
        previous: Any,
        free: Any,
        *,
        step: int,
        rate: Any,
        clip: float,
        lower: float,
        upper: float,
        floor: float,
        beta1: float = 0.98,
        beta2: float = 0.92,
        beta3: float = 0.99,
        eps: float = 1e-8,
    ) -> None:
        """See `ImageTerms`."""
        moments = {"first": first, "slope": slope, "second": second, "previous": previous}
        arrays = self._arrays(n=n, x=x, g=g, **moments, free=free, rate=rate)
        checks.adan(
            **arrays, step=step, clip=clip, lower=lower, upper=upper, floor=floor, beta1=beta1,
            beta2=beta2, beta3=beta3, eps=eps,
        )  # fmt: skip
        constants = adan_step(step, clip, lower, upper, floor, (beta1, beta2, beta3), eps)
        self._adan("adan", arrays, step=constants)

    def adan_scheduled(
        self,
        n: Any,
        x: Any,
        g: Any,
        first: Any,
        slope: Any,
        second: Any,
        previous: Any,
        free: Any,
        *,
        rate: Any,
        steps: Any,
        at: Any,
    ) -> None:
        """As `adan`, with constants read on the device, so that a captured launch serves all steps.

        Args:
            steps: (N, 13) float32, see `adan_steps`. at: (1,) int32, which row counts, below N.
        """
        moments = {"first": first, "slope": slope, "second": second, "previous": previous}
        arrays = self._arrays(n=n, x=x, g=g, **moments, free=free, rate=rate)
        checks.adan(
            **arrays, step=1, clip=1.0, lower=0.0, upper=1.0, floor=1.0, beta1=0.98, beta2=0.92,
            beta3=0.99, eps=1e-8,
        )  # fmt: skip
        self._adan("adan_scheduled", {**arrays, **self._arrays(steps=steps, at=at)})

    def _adan(self, kernel: str, arrays: dict[str, Any], **constants: Any) -> None:
        batch, channels, height, width = arrays["x"].shape
        sizes = {"batch": batch * channels, "channels": channels, "plane": height * width}
        grid = self.device.rows(sizes["batch"], sizes["plane"])
        updated = ("n", "first", "slope", "second", "previous")
        with Call(self.device, arrays, updated=updated) as call:
            call.launch(kernel, grid, **constants, **sizes)


def _falloff(sigma_space: float, sigma_colour: float) -> dict[str, float]:
    return {
        "inverse_sigma_space": inverse(sigma_space),
        "inverse_sigma_colour": inverse(sigma_colour),
    }


def _reach(radius: int, sigma_space: float) -> int:
    """How far a neighbour may be without its weight being 0 by the distance alone, pixels."""
    return int(min(radius, math.sqrt(_LARGEST_SPACE * sigma_space) * 1.000001))
