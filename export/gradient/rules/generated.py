"""Gradients of operators that write given values into new tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule
from unblemish.export.gradient.rules.shapes import vector

Names = Sequence[Name | None]


@rule("OneHot")
def one_hot(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y is values[1] at the index, values[0] elsewhere: each gets the sum over its places."""
    ct, (indices, depth, values) = cotangents[0], node.inputs
    assert ct is not None
    axis = node.attributes.get("axis", -1)
    marks = ctx.const(np.array([0, 1], dtype=ctx.dtype(values)))
    hot = ctx.op("OneHot", indices, depth, marks, axis=axis)
    on = ctx.op("ReduceSum", ctx.op("Mul", ct, hot), keepdims=0)
    off = ctx.op("Sub", ctx.op("ReduceSum", ct, keepdims=0), on)
    one = vector(ctx, [1])
    pair = [ctx.op("Reshape", part, one) for part in (off, on)]
    return [None, None, ctx.op("Concat", *pair, axis=0)]


@rule("Range")
def range_(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """y_k = start + k delta: sum ct and sum ct k; the limit only counts."""
    ct, (start, _, delta) = cotangents[0], node.inputs
    assert ct is not None
    kind = helper.np_dtype_to_tensor_dtype(ctx.dtype(ct))
    zero, one = (ctx.const(np.array(v, np.int64)) for v in (0, 1))
    grad_delta = None
    if ctx.needs(delta):
        steps = ctx.op("Cast", ctx.op("Range", zero, ctx.op("Size", ct), one), to=kind)
        grad_delta = ctx.op("ReduceSum", ctx.op("Mul", ct, steps), keepdims=0)
    grad_start = ctx.op("ReduceSum", ct, keepdims=0) if ctx.needs(start) else None
    return [grad_start, None, grad_delta]
