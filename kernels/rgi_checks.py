"""What the kernels of RGI beside the protocol demand of their arrays; see `checks`."""

from __future__ import annotations

from typing import Any

import numpy as np

from unblemish.kernels.checks import _apart, _array, _image, _mask


def latent_prior(z: Any, *, gradient: Any, objective: Any) -> None:
    """Check the arguments of `CudaKernels.latent_prior`. Raises: ShapeError."""
    where = "latent_prior"
    shape = _array(where, "z", z, None)
    _array(where, "gradient", gradient, shape, out=True)
    _array(where, "objective", objective, shape[:1], np.float64, out=True)
    _apart(where, {"gradient": gradient, "objective": objective}, {"z": z})


def disbelief(logit: Any, *, slope: Any, objective: Any) -> None:
    """Check the arguments of `CudaKernels.disbelief`. Raises: ShapeError."""
    where = "disbelief"
    shape = _array(where, "logit", logit, None)
    _array(where, "slope", slope, shape, out=True)
    _array(where, "objective", objective, shape[:1], np.float64, out=True)
    _apart(where, {"slope": slope, "objective": objective}, {"logit": logit})


def keep_unmasked(x: Any, mask: Any, *, kept: Any) -> None:
    """Check the arguments of `CudaKernels.keep_unmasked`. Raises: ShapeError."""
    where = "keep_unmasked"
    shape = _image(where, x)
    inputs = {"x": x}
    if mask is not None:
        _mask(where, "mask", mask, shape)
        inputs["mask"] = mask
    _array(where, "kept", kept, shape, out=True)
    _apart(where, {"kept": kept}, inputs)


def add_values(more: Any, *, objective: Any) -> None:
    """Check the arguments of `CudaKernels.add_values`. Raises: ShapeError."""
    shape = _array("add_values", "more", more, None, np.float64)
    _array("add_values", "objective", objective, shape, np.float64, out=True)
    _apart("add_values", {"objective": objective}, {"more": more})
