"""Operators that move elements without computing."""

from __future__ import annotations

import numpy as np
import torch

from unblemish.runtime.backends.torch_ops.registry import Tensor, TorchNode, op

_PAD_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@op("Concat")
def concat(node: TorchNode, *inputs: Tensor) -> Tensor:
    """Join along `axis`."""
    return torch.cat(inputs, dim=node.get("axis"))


@op("Split")
def split(node: TorchNode, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
    """Cut along `axis` into parts of given or equal length (the last may be shorter)."""
    axis = node.get("axis", 0)
    sizes = node.ints("split", lengths)
    if sizes is None:
        count = node.get("num_outputs", len(node.outputs))
        size = -(-x.shape[axis] // count)
        sizes = [size] * (count - 1) + [x.shape[axis] - size * (count - 1)]
    return torch.split(x, sizes, dim=axis)


@op("Slice")
def slice_(
    node: TorchNode,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Part of the axes, with any step; indices are clamped as in the operator."""
    first, last = node.ints("starts", starts) or [], node.ints("ends", ends) or []
    along = node.ints("axes", axes) or list(range(len(first)))
    stride = node.ints("steps", steps) or [1] * len(first)
    for start, end, axis, step in zip(first, last, along, stride, strict=True):
        x = _slice_axis(x, start, end, axis, step)
    return x


def _slice_axis(x: Tensor, start: int, end: int, axis: int, step: int) -> Tensor:
    length = x.shape[axis]
    lowest = 0 if step > 0 else -1
    begin = min(max(start + length if start < 0 else start, 0), length if step > 0 else length - 1)
    stop = min(max(end + length if end < 0 else end, lowest), length)
    if step == 1:
        return x.narrow(axis, begin, max(stop - begin, 0))
    index = torch.arange(length, device=x.device)[list(range(begin, stop, step))]
    return x.index_select(axis, index.to(torch.int64))


@op("Pad")
def pad(
    node: TorchNode,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Extend (or, with negative pads, crop) every axis."""
    amounts = node.ints("pads", pads) or []
    along = node.ints("axes", axes) or list(range(x.dim()))
    mode = node.get("mode", "constant")
    fill = value.item() if value is not None and value.numel() else node.get("value", 0.0)
    for i, axis in enumerate(along):
        before, after = amounts[i], amounts[i + len(along)]
        if before or after:
            x = _pad_axis(x, axis % x.dim(), before, after, mode, fill)
    return x


def _pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str, fill: float) -> Tensor:
    if mode == "constant":
        flat = [0] * 2 * (x.dim() - 1 - axis) + [before, after]
        return torch.nn.functional.pad(x, flat, value=fill)
    kept = np.arange(max(-before, 0), x.shape[axis] - max(-after, 0))
    index = np.pad(kept, (max(before, 0), max(after, 0)), mode=_PAD_MODES[mode])  # type: ignore[call-overload]
    return x.index_select(axis, torch.from_numpy(index).to(x.device))


@op("Reshape")
def reshape(node: TorchNode, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """New shape; 0 copies a dimension (unless allowzero), -1 is inferred."""
    target = node.ints("shape", shape) or []
    if not node.get("allowzero", 0):
        target = [x.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return x.reshape(target)


@op("Flatten")
def flatten(node: TorchNode, x: Tensor) -> Tensor:
    """A matrix: axes before `axis` as rows, the rest as columns."""
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return x.reshape(rows, int(np.prod(x.shape[axis:], dtype=np.int64)))


@op("Squeeze")
def squeeze(node: TorchNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop axes of length 1: the named ones, or all."""
    dims = node.ints("axes", axes)
    return x.squeeze() if dims is None else x.squeeze(tuple(dims))


@op("Unsqueeze")
def unsqueeze(node: TorchNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Insert axes of length 1 at the named places of the result."""
    dims = node.ints("axes", axes) or []
    rank = x.dim() + len(dims)
    for axis in sorted(d % rank for d in dims):
        x = x.unsqueeze(axis)
    return x


@op("Transpose")
def transpose(node: TorchNode, x: Tensor) -> Tensor:
    """Permute the axes; reversed where `perm` is absent."""
    return x.permute(node.get("perm", list(reversed(range(x.dim())))))


@op("Expand")
def expand(node: TorchNode, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast, in both directions, to `shape`."""
    target = np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist()))
    return x.expand(target)


@op("Tile")
def tile(node: TorchNode, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat the whole along every axis."""
    return x.repeat(repeats.tolist())


@op("DepthToSpace")
def depth_to_space(node: TorchNode, x: Tensor) -> Tensor:
    """Channels into blocks of pixels, depth first (DCR) or column first (CRD)."""
    b = node.get("blocksize")
    n, c, h, w = x.shape
    if node.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // b**2, h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(node: TorchNode, x: Tensor) -> Tensor:
    """Blocks of pixels into channels, block first (DCR) or channel first (CRD, opset 28)."""
    b = node.get("blocksize")
    n, c, h, w = x.shape
    order = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = x.reshape(n, c, h // b, b, w // b, b).permute(order)
    return y.reshape(n, c * b * b, h // b, w // b)


@op("Trilu")
def trilu(node: TorchNode, x: Tensor, k: Tensor | None = None) -> Tensor:
    """Upper or lower triangle of the last two axes."""
    diagonal = 0 if k is None else int(k.item())
    return x.triu(diagonal) if node.get("upper", 1) else x.tril(diagonal)
