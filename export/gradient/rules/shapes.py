"""Shape arithmetic that the rules of layout, indexing and reductions share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from unblemish.export.gradient.rule import Name, RuleContext

END = np.iinfo(np.int64).max
"""Slice end that means: to the last element, whatever the length."""


def vector(ctx: RuleContext, values: Sequence[int]) -> Name:
    """Constant int64 vector."""
    return ctx.const(np.array(values, dtype=np.int64))


def constant_ints(ctx: RuleContext, name: Name | None) -> list[int] | None:
    """The integers behind a constant; None where absent or computed."""
    value = None if name is None else ctx.constant_value(name)
    return None if value is None else [int(v) for v in value.reshape(-1)]


def length(ctx: RuleContext, name: Name, axis: int) -> int | None:
    """Static length of an axis, None where symbolic."""
    shape = ctx.static_shape(name)
    return None if shape is None else shape[axis]


def length_of(ctx: RuleContext, name: Name, axis: int) -> Name:
    """Length of an axis (>= 0), int64 of shape (1,): a constant where static."""
    known = length(ctx, name, axis)
    if known is not None:
        return vector(ctx, [known])
    return ctx.op("Slice", ctx.shape(name), vector(ctx, [axis]), vector(ctx, [axis + 1]))


def reshape_like(ctx: RuleContext, value: Name, like: Name) -> Name:
    """Reshape to the shape of `like`; a constant target with one symbolic dimension or none."""
    dims = ctx.static_shape(like)
    if dims is not None and dims.count(None) == 1 and 0 not in dims:
        target = vector(ctx, [-1 if d is None else d for d in dims])
        return ctx.op("Reshape", value, target)
    if dims is not None and 0 in dims:
        return ctx.op("Reshape", value, ctx.shape(like), allowzero=1)
    return ctx.op("Reshape", value, ctx.shape(like))


def part(ctx: RuleContext, value: Name, axis: int, start: int, end: int, step: int = 1) -> Name:
    """value[start:end:step] along one axis, constants."""
    bounds = [vector(ctx, [v]) for v in (start, end, axis, step)]
    return ctx.op("Slice", value, *(bounds if step != 1 else bounds[:3]))


def flipped(ctx: RuleContext, value: Name, axis: int) -> Name:
    """Reverse the order along one axis."""
    return part(ctx, value, axis, -1, -END, -1)


def pad_axis(ctx: RuleContext, value: Name, axis: int, before: Name, after: Name) -> Name:
    """Extend one axis with zeros; `before` and `after` are int64 of shape (1,)."""
    rank = ctx.rank(value)
    pads = []
    for amount in (before, after):
        zeros = [vector(ctx, [0] * axis), vector(ctx, [0] * (rank - axis - 1))]
        parts = [p for p, n in ((zeros[0], axis), (amount, 1), (zeros[1], rank - axis - 1)) if n]
        pads.append(ctx.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0])
    return ctx.op("Pad", value, ctx.op("Concat", *pads, axis=0))


def flat_indices(ctx: RuleContext, name: Name) -> Name:
    """Position of every element in memory order, int64 of the shape of `name`."""
    zero, one = ctx.const(np.array(0, np.int64)), ctx.const(np.array(1, np.int64))
    count = ctx.op("ReduceProd", ctx.shape(name), keepdims=0)
    return ctx.op("Reshape", ctx.op("Range", zero, count, one), ctx.shape(name))


def scatter_add(
    ctx: RuleContext, op_type: str, target: Name, indices: Name, updates: Name, **attributes: int
) -> Name:
    """Add updates into zeros of the shape `target` (an int64 vector) with a Scatter operator.

    float16 is added in float32: more exact, and not every engine adds in float16.
    """
    half = ctx.dtype(updates) == np.float16
    wide = ctx.op("Cast", updates, to=TensorProto.FLOAT) if half else updates
    zeros = ctx.op("ConstantOfShape", target, value=np.zeros(1, dtype=ctx.dtype(wide)))
    total = ctx.op(op_type, zeros, indices, wide, reduction="add", **attributes)
    return ctx.op("Cast", total, to=TensorProto.FLOAT16) if half else total


def scatter_back(ctx: RuleContext, cotangent: Name, places: Name, like: Name) -> Name:
    """Sum the cotangent into zeros of the shape of `like` at flat `places` (same shape as it).

    The way back of any operator that only moves elements: apply it to `flat_indices` instead.
    """
    everything = vector(ctx, [-1])
    count = ctx.op("Reshape", ctx.op("ReduceProd", ctx.shape(like), keepdims=0), vector(ctx, [1]))
    flat = scatter_add(
        ctx,
        "ScatterElements",
        count,
        ctx.op("Reshape", places, everything),
        ctx.op("Reshape", cotangent, everything),
        axis=0,
    )
    return ctx.op("Reshape", flat, ctx.shape(like))
