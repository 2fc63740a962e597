"""Interpolation weights computed inside the graph, where lengths are symbolic."""

from __future__ import annotations

import math

import numpy as np
from onnx import helper

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, unsupported
from unblemish.export.gradient.rules.shapes import length_of, vector
from unblemish.runtime.backends.interpolation import ResizeSettings


def computed_weights(
    ctx: RuleContext,
    node: ForwardNode,
    settings: ResizeSettings,
    like: Name,
    axis: int,
    scale: float | Name | None,
    roi: tuple[float, float],
) -> Name:
    """Weights W (target, length) of the dtype of `like`, as `interpolation_matrix` defines them.

    Args:
        scale: a number, a computed float32 of shape (1,), or None for the ratio of the lengths.
    Raises: UnsupportedOperatorError for anti-aliasing by a computed scale.
    """
    # float32 for nearest, where a rounding decides: as the engines do.
    real = np.dtype(np.float32) if settings.mode == "nearest" else ctx.dtype(like)
    sampler = _Sampler(ctx, node, settings, axis, real)
    x = sampler.coordinates(scale, roi)
    if settings.mode == "nearest":
        hit = sampler.hits(sampler.rounded(x))
        weights = ctx.op("Where", hit, ctx.scalar(1.0, like), ctx.scalar(0.0, like))
    else:
        if settings.antialias and not isinstance(scale, float):
            raise unsupported(
                ctx,
                node,
                "anti-aliasing needs a constant scale; fix the input's shape or the scales",
            )
        weights = sampler.filtered(x, scale if isinstance(scale, float) else 1.0)
    if settings.coordinates == "tf_crop_and_resize":
        inside = ctx.op("Unsqueeze", sampler.inside(x), vector(ctx, [1]))
        weights = ctx.op("Where", inside, weights, ctx.scalar(0.0, weights))
    return weights


class _Sampler:
    """Emits the nodes for one axis; rows are outputs (target, 1), columns inputs (length,)."""

    def __init__(
        self,
        ctx: RuleContext,
        node: ForwardNode,
        settings: ResizeSettings,
        axis: int,
        real: np.dtype[np.floating],
    ) -> None:
        self.ctx, self.settings, self.real = ctx, settings, real
        self.kind = helper.np_dtype_to_tensor_dtype(real)
        self.length = self._real(length_of(ctx, node.inputs[0], axis))
        self.target = self._real(length_of(ctx, node.outputs[0], axis))
        self.columns = self._range(length_of(ctx, node.inputs[0], axis))
        self.rows = self._range(length_of(ctx, node.outputs[0], axis))
        self.last = self._op("Sub", self.length, 1.0)

    def coordinates(self, scale: float | Name | None, roi: tuple[float, float]) -> Name:
        """Position in the input of each output, (target,); the formulas of `source_coordinates`."""
        kind, op = self.settings.coordinates, self._op
        if kind == "align_corners":
            return op("Div", op("Mul", self.rows, self.last), self._steps())
        if kind == "tf_crop_and_resize":
            return self._cropped(roi)
        factor = self._factor(scale)
        if kind == "asymmetric":
            return op("Div", self.rows, factor)
        centred = op("Div", op("Add", self.rows, 0.5), factor)
        if kind == "tf_half_pixel_for_nn":
            return centred
        if kind == "half_pixel_symmetric":
            ratio = op("Div", self.target, op("Mul", factor, self.length))
            offset = op("Mul", op("Mul", self.length, 0.5), op("Sub", 1.0, ratio))
            centred = op("Add", offset, centred)
        moved = op("Sub", centred, 0.5)
        if kind == "pytorch_half_pixel":
            single = self.ctx.op("Equal", self.target, self._scalar(1.0))
            return op("Where", single, 0.0, moved)
        return moved

    def rounded(self, x: Name) -> Name:
        """Index of the nearest input, not yet held in range."""
        how = self.settings.nearest
        if how == "round_prefer_floor":
            return self._op("Ceil", self._op("Sub", x, 0.5))
        if how == "round_prefer_ceil":
            return self._op("Floor", self._op("Add", x, 0.5))
        return self._op("Floor" if how == "floor" else "Ceil", x)

    def hits(self, index: Name) -> Name:
        """Whether output row samples input column, (target, length); indices are clamped."""
        held = self._op("Min", self._op("Max", index, 0.0), self.last)
        return self.ctx.op("Equal", self._column(held), self.columns)

    def filtered(self, x: Name, scale: float) -> Name:
        """Weights of the linear or cubic filter, summed over the neighbours of each output."""
        settings, op = self.settings, self._op
        reach = 1.0 if settings.mode == "linear" else 2.0
        stretch = min(scale, 1.0) if settings.antialias else 1.0
        span = math.ceil(reach / stretch)
        base = op("Floor", x)
        terms, totals = [], []
        for tap in range(1 - span, span + 1):
            index = op("Add", base, float(tap)) if tap else base
            weight = self._weight(op("Mul", op("Abs", op("Sub", index, x)), stretch))
            if settings.exclude_outside:
                weight = op("Where", self.inside(index), weight, 0.0)
            terms.append(op("Where", self.hits(index), self._column(weight), 0.0))
            totals.append(weight)
        weights = self.ctx.op("Sum", *terms)
        if settings.exclude_outside or settings.antialias:
            return op("Div", weights, self._column(self.ctx.op("Sum", *totals)))
        return weights

    def inside(self, x: Name) -> Name:
        """Whether a position lies within the input."""
        ctx = self.ctx
        near = ctx.op("GreaterOrEqual", x, self._scalar(0.0))
        return ctx.op("And", near, ctx.op("LessOrEqual", x, self.last))

    def _weight(self, distance: Name) -> Name:
        op, a = self._op, self.settings.cubic_a
        if self.settings.mode == "linear":
            return op("Max", op("Sub", 1.0, distance), 0.0)
        # Keys (1981), eq. 4, by Horner's rule.
        square = op("Mul", distance, distance)
        near = op("Add", op("Mul", op("Sub", op("Mul", distance, a + 2), a + 3), square), 1.0)
        far = op("Sub", op("Mul", distance, a), 5 * a)
        far = op("Add", op("Mul", far, distance), 8 * a)
        far = op("Sub", op("Mul", far, distance), 4 * a)
        outer = op("Where", self.ctx.op("Less", distance, self._scalar(2.0)), far, 0.0)
        return op("Where", self.ctx.op("Less", distance, self._scalar(1.0)), near, outer)

    def _cropped(self, roi: tuple[float, float]) -> Name:
        start, end = roi
        op = self._op
        steps = op("Div", op("Mul", op("Mul", self.rows, end - start), self.last), self._steps())
        first = op("Mul", self.last, start)
        middle = op("Mul", self.last, 0.5 * (start + end))
        single = self.ctx.op("Equal", self.target, self._scalar(1.0))
        return op("Where", single, middle, op("Add", first, steps))

    def _factor(self, scale: float | Name | None) -> Name:
        if isinstance(scale, float):
            return self._scalar(scale)
        return self._op("Div", self.target, self.length) if scale is None else self._real(scale)

    def _steps(self) -> Name:
        """target - 1, or 1 where there is a single output, whose row is 0."""
        return self._op("Max", self._op("Sub", self.target, 1.0), 1.0)

    def _op(self, op_type: str, *inputs: Name | float) -> Name:
        names = [self._scalar(i) if isinstance(i, float) else i for i in inputs]
        return self.ctx.op(op_type, *names)

    def _scalar(self, value: float) -> Name:
        return self.ctx.const(np.array(value, dtype=self.real))

    def _real(self, value: Name) -> Name:
        return self.ctx.op("Cast", value, to=self.kind)

    def _range(self, count: Name) -> Name:
        zero, one = (self.ctx.const(np.array(v, np.int64)) for v in (0, 1))
        scalar = self.ctx.op("Squeeze", count, vector(self.ctx, [0]))
        return self._real(self.ctx.op("Range", zero, scalar, one))

    def _column(self, value: Name) -> Name:
        return self.ctx.op("Unsqueeze", value, vector(self.ctx, [1]))
