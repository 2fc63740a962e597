"""Gradients of Slice and Pad, which cut off and add at the borders."""

from __future__ import annotations

from collections.abc import Sequence

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule
from unblemish.export.gradient.rules.shapes import (
    END,
    constant_ints,
    flat_indices,
    flipped,
    length,
    length_of,
    pad_axis,
    part,
    scatter_back,
    vector,
)

Names = Sequence[Name | None]


@rule("Slice")
def slice_(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Zeros around (and, for steps, between) the cotangent."""
    ct, x = cotangents[0], node.inputs[0]
    assert ct is not None
    rank = ctx.rank(x)
    starts, steps = constant_ints(ctx, node.inputs[1]), constant_ints(ctx, node.input(4))
    axes = constant_ints(ctx, node.input(3))
    if node.input(3) is None and starts is not None:
        axes = list(range(len(starts)))
    if node.input(4) is None and starts is not None:
        steps = [1] * len(starts)
    if starts is None or axes is None or steps is None:
        places = ctx.op("Slice", flat_indices(ctx, x), *node.inputs[1:])
        return [scatter_back(ctx, ct, places, x)]
    for axis, start, step in zip(axes, starts, steps, strict=True):
        ct = _unslice(ctx, ct, x, axis % rank, start, step)
    return [ct]


def _unslice(ctx: RuleContext, ct: Name, x: Name, axis: int, start: int, step: int) -> Name:
    """Undo one axis: element k of the slice came from first + k step."""
    if step < 0:
        # The slice reversed starts where the slice ended, and runs forward.
        count = length_of(ctx, ct, axis)
        span = ctx.op("Mul", ctx.op("Sub", count, vector(ctx, [1])), vector(ctx, [-step]))
        first = ctx.op("Sub", _first(ctx, x, axis, start, backward=True), span)
        ct, step = flipped(ctx, ct, axis), -step
    else:
        first = _first(ctx, x, axis, start, backward=False)
    ct = _dilated(ctx, ct, axis, step)
    after = ctx.op("Sub", ctx.op("Sub", length_of(ctx, x, axis), first), length_of(ctx, ct, axis))
    before_and_after = [constant_ints(ctx, first), constant_ints(ctx, after)]
    if before_and_after == [[0], [0]]:
        return ct
    # With steps, the zeros behind the last element may reach over the end: they are cut off.
    return pad_axis(ctx, ct, axis, first, after)


def _first(ctx: RuleContext, x: Name, axis: int, start: int, *, backward: bool) -> Name:
    """Index at which the slice starts, clamped as the operator clamps it; int64 of shape (1,)."""
    size = length_of(ctx, x, axis)
    index = vector(ctx, [start]) if start >= 0 else ctx.op("Add", size, vector(ctx, [start]))
    last = ctx.op("Sub", size, vector(ctx, [1])) if backward else size
    return ctx.op("Min", ctx.op("Max", index, vector(ctx, [0])), last)


def _dilated(ctx: RuleContext, ct: Name, axis: int, step: int) -> Name:
    """step - 1 zeros behind every element along an axis."""
    if step == 1 or length(ctx, ct, axis) == 1:
        return ct
    columns = ctx.op("Unsqueeze", ct, vector(ctx, [axis + 1]))
    spread = pad_axis(ctx, columns, axis + 1, vector(ctx, [0]), vector(ctx, [step - 1]))
    sizes = [length_of(ctx, ct, a) for a in range(ctx.rank(ct))]
    sizes[axis] = ctx.op("Mul", sizes[axis], vector(ctx, [step]))
    return ctx.op("Reshape", spread, ctx.op("Concat", *sizes, axis=0))


@rule("Pad")
def pad(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Constant: the middle of the cotangent; else what was copied out is added back in."""
    ct, x = cotangents[0], node.inputs[0]
    assert ct is not None
    mode = node.attributes.get("mode", "constant")
    pads, axes = constant_ints(ctx, node.inputs[1]), constant_ints(ctx, node.input(3))
    if node.input(3) is None:
        axes = list(range(ctx.rank(x)))
    if mode == "constant":
        grad = _crop(ctx, node, ct, pads, axes)
        return [grad, None, _of_value(ctx, node, ct, grad), None]
    if pads is None or axes is None or not _plain(ctx, x, mode, pads, axes):
        return [_pad_by_index(ctx, node, ct)]
    count = len(axes)
    for i, axis in enumerate(axes):
        if pads[i] or pads[i + count]:
            ct = _fold(ctx, ct, x, axis % ctx.rank(x), pads[i], pads[i + count], mode)
    return [ct]


def _crop(
    ctx: RuleContext,
    node: ForwardNode,
    ct: Name,
    pads: list[int] | None,
    axes: list[int] | None,
) -> Name:
    if pads is None or axes is None or min(pads, default=0) < 0:
        # Pad with negative amounts crops, and extends where the forward operator cropped.
        return ctx.op("Pad", ct, ctx.op("Neg", node.inputs[1]), None, node.input(3))
    count = len(axes)
    used = [i for i in range(count) if pads[i] or pads[i + count]]
    if not used:
        return ct
    starts = vector(ctx, [pads[i] for i in used])
    ends = vector(ctx, [-pads[i + count] if pads[i + count] else END for i in used])
    return ctx.op("Slice", ct, starts, ends, vector(ctx, [axes[i] for i in used]))


def _of_value(ctx: RuleContext, node: ForwardNode, ct: Name, middle: Name) -> Name | None:
    """Gradient of the fill value: the sum of everything but the middle."""
    value = node.input(2)
    if value is None or not ctx.needs(value):
        return None
    total = ctx.op(
        "Sub", ctx.op("ReduceSum", ct, keepdims=0), ctx.op("ReduceSum", middle, keepdims=0)
    )
    return ctx.op("Reshape", total, ctx.shape(value))


def _plain(ctx: RuleContext, x: Name, mode: str, pads: list[int], axes: list[int]) -> bool:
    """Whether every pad copies each element at most once; taken for granted where symbolic."""
    count = len(axes)
    for i, axis in enumerate(axes):
        size = length(ctx, x, axis)
        room = END if size is None or mode == "edge" else size - (1 if mode == "reflect" else 0)
        if not all(0 <= amount <= room for amount in (pads[i], pads[i + count])):
            return False
    return True


def _fold(
    ctx: RuleContext, ct: Name, x: Name, axis: int, before: int, after: int, mode: str
) -> Name:
    """Add the borders back to where they were copied from."""
    end = -after if after else END
    middle = part(ctx, ct, axis, before, end)
    size = length_of(ctx, x, axis)
    terms = [middle]
    if before:
        border = _source(ctx, part(ctx, ct, axis, 0, before), axis, mode)
        terms.append(_placed(ctx, border, axis, size, mode, before, near=True))
    if after:
        border = _source(ctx, part(ctx, ct, axis, -after, END), axis, mode)
        terms.append(_placed(ctx, border, axis, size, mode, after, near=False))
    return ctx.op("Sum" if len(terms) > 2 else "Add", *terms)


def _source(ctx: RuleContext, border: Name, axis: int, mode: str) -> Name:
    """The border in the order of the elements that it copies."""
    if mode == "edge":
        return ctx.op("ReduceSum", border, vector(ctx, [axis]), keepdims=1)
    return flipped(ctx, border, axis) if mode == "reflect" else border


def _placed(
    ctx: RuleContext, border: Name, axis: int, size: Name, mode: str, amount: int, *, near: bool
) -> Name:
    """The border among zeros: behind the first element (reflect), on it (edge), far off (wrap)."""
    width = 1 if mode == "edge" else amount
    offset = 1 if mode == "reflect" else 0
    close = vector(ctx, [offset])
    far = ctx.op("Sub", size, vector(ctx, [offset + width]))
    at_start = near != (mode == "wrap")
    return pad_axis(ctx, border, axis, *((close, far) if at_start else (far, close)))


def _pad_by_index(ctx: RuleContext, node: ForwardNode, ct: Name) -> Name:
    """Any pads: apply the operator to the positions, then add up what came from each."""
    x, mode = node.inputs[0], node.attributes["mode"]
    places = ctx.op("Pad", flat_indices(ctx, x), node.inputs[1], None, node.input(3), mode=mode)
    return scatter_back(ctx, ct, places, x)
