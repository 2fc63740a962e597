"""Gradients of operators that move elements without computing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule, unsupported
from unblemish.export.gradient.rules.shapes import (
    constant_ints,
    length,
    length_of,
    part,
    reshape_like,
    vector,
)

Names = Sequence[Name | None]


@rule("Concat")
def concat(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Every operand gets its part of the cotangent."""
    ct = _given(cotangents)
    axis = node.attributes["axis"] % ctx.rank(ct)
    lengths = [length(ctx, name, axis) for name in node.inputs]
    wanted = [i for i, name in enumerate(node.inputs) if ctx.needs(name)]
    if len(node.inputs) == 1:
        return [ct]
    if len(wanted) < len(node.inputs) and None not in lengths:
        ends = list(accumulate(n for n in lengths if n is not None))
        starts = [0, *ends[:-1]]
        return [
            part(ctx, ct, axis, starts[i], ends[i]) if i in wanted else None
            for i in range(len(node.inputs))
        ]
    sizes = ctx.op("Concat", *(length_of(ctx, n, axis) for n in node.inputs), axis=0)
    return ctx.ops("Split", ct, sizes, outputs=len(node.inputs), axis=axis)


@rule("Split")
def split(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The cotangents of the parts, joined; a part that nobody used counts as zeros."""
    if "" in node.outputs:
        raise unsupported(ctx, node, "an output of Split is left out; name all of them")
    parts = [
        ctx.zeros_like(name) if ct is None else ct
        for name, ct in zip(node.outputs, cotangents, strict=True)
    ]
    axis = node.attributes.get("axis", 0)
    return [ctx.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0], None]


@rule("Reshape", "Flatten")
def reshape(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The cotangent in the shape of the input."""
    return [reshape_like(ctx, _given(cotangents), node.inputs[0]), None]


@rule("Squeeze")
def squeeze(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The axes of length 1 come back."""
    axes = node.input(1)
    if axes is None or constant_ints(ctx, axes) is None:
        return [reshape_like(ctx, _given(cotangents), node.inputs[0]), None]
    known = [a % ctx.rank(node.inputs[0]) for a in constant_ints(ctx, axes) or []]
    return [ctx.op("Unsqueeze", _given(cotangents), vector(ctx, sorted(known))), None]


@rule("Unsqueeze")
def unsqueeze(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The axes of length 1 go."""
    ct, axes = _given(cotangents), constant_ints(ctx, node.inputs[1])
    if axes is None:
        return [reshape_like(ctx, ct, node.inputs[0]), None]
    return [ctx.op("Squeeze", ct, vector(ctx, sorted(a % ctx.rank(ct) for a in axes))), None]


@rule("Transpose")
def transpose(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The inverse permutation."""
    rank = ctx.rank(node.inputs[0])
    perm = node.attributes.get("perm") or list(reversed(range(rank)))
    return [ctx.op("Transpose", _given(cotangents), perm=[int(i) for i in np.argsort(perm)])]


@rule("Expand")
def expand(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Sum over the axes that were broadcast."""
    return [ctx.sum_to(_given(cotangents), node.inputs[0]), None]


@rule("Tile")
def tile(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Sum over the repetitions: reshape to (r0, d0, r1, d1, …), sum every r."""
    ct, x = _given(cotangents), node.inputs[0]
    rank, repeats = ctx.rank(x), constant_ints(ctx, node.inputs[1])
    if repeats is not None and all(r == 1 for r in repeats):
        return [ct, None]
    column = vector(ctx, [1])
    pairs = ctx.op(
        "Concat",
        ctx.op("Unsqueeze", node.inputs[1], column),
        ctx.op("Unsqueeze", ctx.shape(x), column),
        axis=1,
    )
    blocks = ctx.op("Reshape", ct, ctx.op("Reshape", pairs, vector(ctx, [-1])))
    axes = vector(ctx, range(0, 2 * rank, 2))
    return [ctx.op("ReduceSum", blocks, axes, keepdims=0), None]


@rule("DepthToSpace")
def depth_to_space(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """SpaceToDepth; for column-first order (CRD) its channels are permuted afterwards."""
    block = node.attributes["blocksize"]
    blocks = ctx.op("SpaceToDepth", _given(cotangents), blocksize=block)
    if node.attributes.get("mode", "DCR") == "DCR":
        return [blocks]
    channels = length(ctx, node.inputs[0], 1)
    if channels is None:
        raise unsupported(ctx, node, "mode CRD needs a static number of channels")
    # SpaceToDepth orders (row, column, depth), CRD is (depth, row, column).
    order = np.arange(channels).reshape(block * block, -1).T.reshape(-1)
    return [ctx.op("Gather", blocks, ctx.const(order.astype(np.int64)), axis=1)]


@rule("SpaceToDepth")
def space_to_depth(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """DepthToSpace, depth first."""
    block = node.attributes["blocksize"]
    return [ctx.op("DepthToSpace", _given(cotangents), blocksize=block, mode="DCR")]


@rule("Trilu")
def trilu(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """The same triangle of the cotangent."""
    upper = node.attributes.get("upper", 1)
    return [ctx.op("Trilu", _given(cotangents), node.input(1), upper=upper), None]


def _given(cotangents: Names) -> Name:
    ct = cotangents[0]
    assert ct is not None
    return ct
