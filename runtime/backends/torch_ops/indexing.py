"""Gathering, scattering, shapes and generated tensors."""

from __future__ import annotations

import torch

from unblemish.runtime.backends.torch_ops.registry import Tensor, TorchNode, op, torch_dtype

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("Shape")
def shape(node: TorchNode, x: Tensor) -> Tensor:
    """Dimensions from `start` to `end`."""
    lengths = list(x.shape)[node.get("start", 0) : node.get("end")]
    return torch.tensor(lengths, dtype=torch.int64, device=_place(node, x))


@op("Size")
def size(node: TorchNode, x: Tensor) -> Tensor:
    """Number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=_place(node, x))


def _place(node: TorchNode, x: Tensor) -> torch.device:
    return torch.device("cpu") if node.get("on_host") else x.device


@op("ConstantOfShape")
def constant_of_shape(node: TorchNode, dimensions: Tensor) -> Tensor:
    """A tensor of one value, float 0 by default."""
    value = node.get("value")
    if value is None:
        value = torch.zeros(1, dtype=node.dtype or torch.float32)
    value = value.to(dimensions.device)
    return value.reshape(()).expand(dimensions.tolist()).clone()  # type: ignore[no-any-return]


@op("Range")
def range_(node: TorchNode, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... before limit."""
    return torch.arange(
        start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device
    )


@op("EyeLike")
def eye_like(node: TorchNode, x: Tensor) -> Tensor:
    """Ones on diagonal k of a matrix of the shape of x."""
    number = node.get("dtype")
    dtype = x.dtype if number is None else torch_dtype(number, node.dtype)
    ones = torch.ones_like(x, dtype=torch.bool)
    k = node.get("k", 0)
    return (ones.triu(k) & ones.tril(k)).to(dtype)


@op("NonZero")
def non_zero(node: TorchNode, x: Tensor) -> Tensor:
    """Indices of the elements other than zero, one row per axis."""
    return x.nonzero().T


@op("OneHot")
def one_hot(node: TorchNode, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """values[1] at the index along a new axis, values[0] elsewhere and where out of range."""
    count, axis = int(depth.item()), node.get("axis", -1)
    axis = axis % (indices.dim() + 1)
    index = indices.to(torch.int64)
    valid = (index >= -count) & (index < count)
    steps = torch.arange(count, device=index.device)
    shape = [1] * (index.dim() + 1)
    shape[axis] = count
    hot = ((index % count).unsqueeze(axis) == steps.reshape(shape)) & valid.unsqueeze(axis)
    return torch.where(hot, values[1], values[0])


@op("Gather")
def gather(node: TorchNode, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of x along `axis`; negative indices count from the end."""
    axis = node.get("axis", 0) % x.dim()
    index = indices.to(torch.int64).to(x.device)
    flat = torch.where(index < 0, index + x.shape[axis], index).reshape(-1)
    rows = x.index_select(axis, flat)
    return rows.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@op("GatherElements")
def gather_elements(node: TorchNode, x: Tensor, indices: Tensor) -> Tensor:
    """Elements of x along `axis` at the given indices."""
    axis = node.get("axis", 0) % x.dim()
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


@op("GatherND")
def gather_nd(node: TorchNode, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of x at index tuples, after `batch_dims` shared axes."""
    batch = node.get("batch_dims", 0)
    return x[_index_tuple(indices, tuple(x.shape), batch)]


@op("ScatterElements", "Scatter")
def scatter_elements(node: TorchNode, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Copy of x with elements along `axis` replaced by, or combined with, the updates."""
    axis = node.get("axis", 0) % x.dim()
    index, reduction = _wrapped(indices, x.shape[axis]), node.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction], include_self=True)


@op("ScatterND")
def scatter_nd(node: TorchNode, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Copy of x with the slices at index tuples replaced by, or combined with, the updates."""
    index, reduction = _index_tuple(indices, tuple(x.shape), 0), node.get("reduction", "none")
    if reduction in ("none", "add"):
        return x.index_put(index, updates, accumulate=reduction == "add")
    places = torch.arange(x.numel(), device=x.device).reshape(x.shape)[index].reshape(-1)
    flat = x.reshape(-1).scatter_reduce(
        0, places, updates.reshape(-1), _REDUCTIONS[reduction], include_self=True
    )
    return flat.reshape(x.shape)


def _wrapped(indices: Tensor, length: int) -> Tensor:
    index = indices.to(torch.int64)
    return torch.where(index < 0, index + length, index)


def _index_tuple(indices: Tensor, dims: tuple[int, ...], batch: int) -> tuple[Tensor, ...]:
    index = indices.to(torch.int64)
    shared = []
    for axis in range(batch):
        shape = [1] * (index.dim() - 1)
        shape[axis] = -1
        shared.append(torch.arange(dims[axis], device=index.device).reshape(shape))
    columns = [_wrapped(index[..., i], dims[batch + i]) for i in range(index.shape[-1])]
    return (*shared, *columns)


@op("Compress")
def compress(node: TorchNode, x: Tensor, condition: Tensor) -> Tensor:
    """Slices along `axis` (elements of the flat input without it) where the condition holds."""
    axis = node.get("axis")
    places = condition.nonzero().reshape(-1)
    return x.reshape(-1)[places] if axis is None else x.index_select(axis, places)
