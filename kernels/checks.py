"""What the kernels demand of their arrays, and the words when it is not so.

One function per operation, with the operation's own arguments, shared by every implementation. A
method of `CpuKernels` calls its function only after the compiled module has refused an argument.
`CudaKernels` has device arrays checked as well, but for their values: to look at them would be to
wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unblemish.errors import ConfigError, ShapeError
from unblemish.kernels.device_array import DeviceArray, overlap

Shape = tuple[int, ...]


def rgi_closed_form(
    x: Any, g: Any, lam: Any, scale: Any, *, mask: Any, cotangent: Any, objective: Any
) -> None:
    """Check the arguments of `Kernels.rgi_closed_form`. Raises: ShapeError."""
    shape = _image("rgi_closed_form", x)
    _array("rgi_closed_form", "g", g, shape)
    _per_item("rgi_closed_form", shape[0], lam=lam, scale=scale)
    _mask("rgi_closed_form", "mask", mask, shape, out=True)
    _array("rgi_closed_form", "cotangent", cotangent, shape, out=True)
    _array("rgi_closed_form", "objective", objective, shape[:1], np.float64, out=True)
    outputs = {"mask": mask, "cotangent": cotangent, "objective": objective}
    _apart("rgi_closed_form", outputs, {"x": x, "g": g, "lam": lam, "scale": scale})


def rgi_gradient(
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
    """Check the arguments of `Kernels.rgi_gradient`. Raises: ShapeError."""
    shape = _image("rgi_gradient", x)
    _array("rgi_gradient", "g", g, shape)
    _mask("rgi_gradient", "mask", mask, shape)
    _per_item("rgi_gradient", shape[0], lam=lam, scale=scale)
    _array("rgi_gradient", "cotangent", cotangent, shape, out=True)
    _array("rgi_gradient", "mask_gradient", mask_gradient, np.shape(mask), out=True)
    _array("rgi_gradient", "objective", objective, shape[:1], np.float64, out=True)
    outputs = {"cotangent": cotangent, "mask_gradient": mask_gradient, "objective": objective}
    _apart("rgi_gradient", outputs, {"x": x, "g": g, "mask": mask, "lam": lam, "scale": scale})


def residual(
    where: str, x: Any, g: Any, scale: Any, *, cotangent: Any, objective: Any, weight: Any
) -> None:
    """Check the arguments of residual_l2 or residual_l1, named by `where`. Raises: ShapeError."""
    shape = _image(where, x)
    _array(where, "g", g, shape)
    _per_item(where, shape[0], scale=scale)
    _array(where, "cotangent", cotangent, shape, out=True)
    _array(where, "objective", objective, shape[:1], np.float64, out=True)
    inputs = {"x": x, "g": g, "scale": scale}
    if weight is not None:
        _mask(where, "weight", weight, shape)
        inputs["weight"] = weight
    _apart(where, {"cotangent": cotangent, "objective": objective}, inputs)


def hold(g: Any, before: Any, mask: Any, scale: Any, *, cotangent: Any, objective: Any) -> None:
    """Check the arguments of `CudaKernels.hold`. Raises: ShapeError."""
    shape = _image("hold", g, "g")
    _array("hold", "before", before, shape)
    _mask("hold", "mask", mask, shape)
    _per_item("hold", shape[0], scale=scale)
    _array("hold", "cotangent", cotangent, shape, out=True)
    _array("hold", "objective", objective, shape[:1], np.float64, out=True)
    inputs = {"g": g, "before": before, "mask": mask, "scale": scale}
    _apart("hold", {"cotangent": cotangent, "objective": objective}, inputs)


def adam(p: Any, grad: Any, m: Any, v: Any, *, step: int, lower: float, upper: float) -> None:
    """Check the arguments of `Kernels.adam`.

    Raises: ShapeError; ConfigError for step < 1 or lower > upper.
    """
    _array("adam", "p", p, None, out=True)
    _array("adam", "grad", grad, p.shape)
    _array("adam", "m", m, p.shape, out=True)
    _array("adam", "v", v, p.shape, out=True)
    _apart("adam", {"p": p, "m": m, "v": v}, {"grad": grad})
    if not step >= 1:
        raise ConfigError(f"adam: step counts from 1, found {step}.")
    if not lower <= upper:
        raise ConfigError(f"adam: the box [{lower}, {upper}] is empty; give lower <= upper.")


def project_ball(p: Any, *, centre: Any, radius: Any) -> None:
    """Check the arguments of `Kernels.project_ball`.

    Raises: ShapeError; ConfigError for a radius < 0 or NaN.
    """
    shape = _array("project_ball", "p", p, None, out=True)
    if len(shape) != 2 or 0 in shape:
        raise ShapeError(f"project_ball: p must be (batch, n) with both >= 1, found {shape}.")
    inputs = {"radius": radius}
    if centre is not None:
        _array("project_ball", "centre", centre, shape)
        inputs["centre"] = centre
    _per_item("project_ball", shape[0], radius=radius)
    _apart("project_ball", {"p": p}, inputs)
    if not all_at_least_zero(radius):
        raise ConfigError(
            f"project_ball: every radius must be >= 0, found {float(np.min(radius))}."
        )


def norms(x: Any, *, squared: Any, largest: Any) -> None:
    """Check the arguments of `Kernels.norms`. Raises: ShapeError."""
    shape = _array("norms", "x", x, None)
    if len(shape) < 1 or 0 in shape:
        raise ShapeError(f"norms: x must be (batch, ...) with every size >= 1, found {shape}.")
    _array("norms", "squared", squared, shape[:1], np.float64, out=True)
    _array("norms", "largest", largest, shape[:1], np.float64, out=True)
    _apart("norms", {"squared": squared, "largest": largest}, {"x": x})


def adam_chunks(*, p: Any, m: Any, v: Any, table: Any) -> None:
    """Check the arguments of `CudaKernels.adam_chunks`. Raises: ShapeError."""
    for name, array in (("p", p), ("m", m), ("v", v)):
        _array("adam_chunks", name, array, p.shape, out=True)
    _chunks("adam_chunks", table)
    _apart("adam_chunks", {"p": p, "m": m, "v": v}, {"table": table})


def void_chunks(*, table: Any, objective: Any) -> None:
    """Check the arguments of `CudaKernels.void_chunks`. Raises: ShapeError."""
    _chunks("void_chunks", table)
    _array("void_chunks", "objective", objective, (1,), np.float64, out=True)


def _chunks(where: str, table: Any) -> None:
    shape = _array(where, "table", table, None, np.uint64)
    if len(shape) != 2 or shape[0] < 1 or shape[1] != 3:
        raise ShapeError(f"{where}: table must be (chunks, 3) with a chunk or more, found {shape}.")


def all_finite(x: Any) -> None:
    """Check the argument of `Kernels.all_finite`. Raises: ShapeError."""
    _array("all_finite", "x", x, None)


def _image(where: str, x: Any, name: str = "x") -> Shape:
    shape = _array(where, name, x, None)
    if len(shape) != 4 or 0 in shape:
        raise ShapeError(
            f"{where}: {name} must be (batch, channels, height, width) with every size >= 1, "
            f"found {shape}."
        )
    return shape


def _per_item(where: str, batch: int, **arrays: Any) -> None:
    for name, array in arrays.items():
        _array(where, name, array, (batch,))


def _mask(where: str, name: str, array: Any, image: Shape, *, out: bool = False) -> None:
    shape = _array(where, name, array, None, out=out)
    shared = (image[0], 1, *image[2:])
    if shape not in (image, shared):
        raise ShapeError(
            f"{where}: {name} must have the shape {shared} (shared by the channels) or {image} "
            f"(per element), found {shape}."
        )


def _array(
    where: str,
    name: str,
    array: Any,
    shape: Shape | None,
    dtype: Any = np.float32,
    *,
    out: bool = False,
) -> Shape:
    if not isinstance(array, (np.ndarray, DeviceArray)):
        raise ShapeError(
            f"{where}: {name} must be a NumPy array of {np.dtype(dtype)}, "
            f"found {type(array).__name__}."
        )
    if array.dtype != dtype:
        raise ShapeError(
            f"{where}: {name} must be {np.dtype(dtype)}, found {array.dtype}. Convert it with "
            f"{name}.astype(np.{np.dtype(dtype)})."
        )
    if shape is not None and array.shape != tuple(shape):
        raise ShapeError(
            f"{where}: {name} must have the shape {tuple(shape)}, found {array.shape}."
        )
    if not array.flags.c_contiguous:
        advice = (
            "Allocate the output with np.empty." if out else f"Pass np.ascontiguousarray({name})."
        )
        raise ShapeError(
            f"{where}: {name} must be C-contiguous, found strides {array.strides} for the shape "
            f"{array.shape}. {advice}"
        )
    if out and not array.flags.writeable:
        raise ShapeError(f"{where}: {name} is written to, but the array found is read-only.")
    found: Shape = array.shape
    return found


def _apart(where: str, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    others = {**outputs, **inputs}
    for name, array in outputs.items():
        for other_name, other in others.items():
            if other_name != name and _may_share(array, other):
                raise ShapeError(
                    f"{where}: {name} is written to and shares memory with {other_name}. "
                    "Give it an array of its own."
                )


def _may_share(a: Any, b: Any) -> bool:
    if isinstance(a, DeviceArray) and isinstance(b, DeviceArray):
        return overlap(a, b)
    if isinstance(a, DeviceArray) or isinstance(b, DeviceArray):
        return False
    return np.may_share_memory(a, b)


def all_at_least_zero(values: Any) -> bool:
    """Whether every number is >= 0; of numbers on a device it is taken for granted."""
    return isinstance(values, DeviceArray) or bool(np.all(values >= 0))
