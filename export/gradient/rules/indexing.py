"""Gradients of gathering and scattering."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule, unsupported
from unblemish.export.gradient.rules.shapes import (
    END,
    length,
    length_of,
    part,
    reshape_like,
    scatter_add,
    vector,
)

Names = Sequence[Name | None]


@rule("Gather")
def gather(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Add every slice of the cotangent where it was taken; without repeats nothing is added.

    Constant indices without repeats become a Gather from the cotangent with one slice of zeros.
    """
    ct, (x, indices) = _given(cotangents), node.inputs
    axis = node.attributes.get("axis", 0) % ctx.rank(x)
    flat = _merged(ctx, ct, x, indices, axis)
    known, size = ctx.constant_value(indices), length(ctx, x, axis)
    if known is not None and size is not None:
        places = np.where(known < 0, known + size, known).reshape(-1)
        if len(np.unique(places)) == len(places):
            return [_ungather(ctx, flat, places, size, axis), None]
    if axis == 0:
        column = ctx.op("Reshape", _int64(ctx, indices), vector(ctx, [-1, 1]))
        return [scatter_add(ctx, "ScatterND", ctx.shape(x), column, flat), None]
    row = [-1 if i == axis else 1 for i in range(ctx.rank(x))]
    spread = ctx.op("Reshape", indices, vector(ctx, row))
    spread = ctx.op("Expand", spread, ctx.shape(flat))
    return [scatter_add(ctx, "ScatterElements", ctx.shape(x), spread, flat, axis=axis), None]


def _merged(ctx: RuleContext, ct: Name, x: Name, indices: Name, axis: int) -> Name:
    """The cotangent with the axes of the indices merged into one, so of the rank of x."""
    count = ctx.rank(indices)
    if count == 1:
        return ct
    if count == 0:
        return ctx.op("Unsqueeze", ct, vector(ctx, [axis]))
    rank, shape = ctx.rank(x), ctx.shape(x)
    parts = [vector(ctx, [-1])]
    if axis:
        parts.insert(0, part(ctx, shape, 0, 0, axis))
    if axis + 1 < rank:
        parts.append(part(ctx, shape, 0, axis + 1, END))
    target = ctx.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
    return ctx.op("Reshape", ct, target)


def _ungather(
    ctx: RuleContext, flat: Name, places: NDArray[np.int64], size: int, axis: int
) -> Name:
    """Rearrange slices: place j came from row `inverse[j]`, or from the zeros behind the last."""
    inverse = np.full(size, len(places))
    inverse[places] = np.arange(len(places))
    if len(places) == size:
        if np.array_equal(inverse, np.arange(size)):
            return flat
        return ctx.op("Gather", flat, ctx.const(inverse.astype(np.int64)), axis=axis)
    start = int(places[0]) if len(places) else 0
    if len(places) and np.array_equal(places, np.arange(start, start + len(places))):
        rank = ctx.rank(flat)
        pads = [0] * 2 * rank
        pads[axis], pads[axis + rank] = start, size - start - len(places)
        return ctx.op("Pad", flat, vector(ctx, pads))
    rank = ctx.rank(flat)
    pads = [0] * 2 * rank
    pads[axis + rank] = 1
    extended = ctx.op("Pad", flat, vector(ctx, pads))
    return ctx.op("Gather", extended, ctx.const(inverse.astype(np.int64)), axis=axis)


@rule("GatherElements")
def gather_elements(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Add every element of the cotangent where it was taken."""
    x, indices = node.inputs
    axis = node.attributes.get("axis", 0)
    ct = _given(cotangents)
    return [scatter_add(ctx, "ScatterElements", ctx.shape(x), indices, ct, axis=axis), None]


@rule("GatherND")
def gather_nd(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Add every slice of the cotangent where it was taken."""
    x, indices = node.inputs
    whole = _with_batch(ctx, indices, x, node.attributes.get("batch_dims", 0))
    return [scatter_add(ctx, "ScatterND", ctx.shape(x), whole, _given(cotangents)), None]


def _with_batch(ctx: RuleContext, indices: Name, x: Name, batch_dims: int) -> Name:
    """Index tuples that name the shared axes too."""
    if not batch_dims:
        return indices
    rank = ctx.rank(indices)
    first = part(ctx, indices, rank - 1, 0, 1)
    zero, one = ctx.const(np.array(0, np.int64)), ctx.const(np.array(1, np.int64))
    columns = []
    for axis in range(batch_dims):
        count = ctx.op("Squeeze", length_of(ctx, x, axis), vector(ctx, [0]))
        steps = ctx.op("Range", zero, count, one)
        row = vector(ctx, [-1 if i == axis else 1 for i in range(rank)])
        columns.append(ctx.op("Expand", ctx.op("Reshape", steps, row), ctx.shape(first)))
    return ctx.op("Concat", *columns, indices, axis=-1)


@rule("ScatterElements")
def scatter_elements(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The updates gather their part of the cotangent; the data keep the rest (reduction none)."""
    ct, (data, indices, updates) = _given(cotangents), node.inputs
    axis = node.attributes.get("axis", 0)
    adds = _adds(ctx, node)
    grad_data = None
    if ctx.needs(data):
        zeros = ctx.zeros_like(updates)
        grad_data = ct if adds else ctx.op("ScatterElements", ct, indices, zeros, axis=axis)
    grad_updates = None
    if ctx.needs(updates):
        grad_updates = ctx.op("GatherElements", ct, indices, axis=axis)
    return [grad_data, None, grad_updates]


@rule("ScatterND")
def scatter_nd(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The updates gather their part of the cotangent; the data keep the rest (reduction none)."""
    ct, (data, indices, updates) = _given(cotangents), node.inputs
    adds = _adds(ctx, node)
    grad_data = None
    if ctx.needs(data):
        zeros = ctx.zeros_like(updates)
        grad_data = ct if adds else ctx.op("ScatterND", ct, indices, zeros)
    grad_updates = ctx.op("GatherND", ct, indices) if ctx.needs(updates) else None
    return [grad_data, None, grad_updates]


def _adds(ctx: RuleContext, node: ForwardNode) -> bool:
    reduction = node.attributes.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise unsupported(ctx, node, f"reduction '{reduction}' has no rule; 'none' and 'add' do")
    return bool(reduction == "add")


@rule("Compress")
def compress(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Compress gathers where the condition holds: scatter back to those places."""
    ct, (x, condition) = _given(cotangents), node.inputs
    places = ctx.op("Transpose", ctx.op("NonZero", condition), perm=[1, 0])
    axis = node.attributes.get("axis")
    if axis is None:
        flat = ctx.op("Reshape", ctx.zeros_like(x), vector(ctx, [-1]))
        return [reshape_like(ctx, ctx.op("ScatterND", flat, places, ct), x), None]
    axis %= ctx.rank(x)
    order = [axis, *(i for i in range(ctx.rank(x)) if i != axis)]
    inverse = [int(i) for i in np.argsort(order)]
    zeros = ctx.op("Transpose", ctx.zeros_like(x), perm=order)
    filled = ctx.op("ScatterND", zeros, places, ctx.op("Transpose", ct, perm=order))
    return [ctx.op("Transpose", filled, perm=inverse), None]


def _int64(ctx: RuleContext, indices: Name) -> Name:
    return ctx.op("Cast", indices, to=TensorProto.INT64)


def _given(cotangents: Names) -> Name:
    ct = cotangents[0]
    assert ct is not None
    return ct
