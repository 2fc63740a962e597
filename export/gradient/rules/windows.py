"""Geometry of sliding windows: resolved pads and strides of convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, unsupported
from unblemish.export.gradient.sizes import difference
from unblemish.export.gradient.types import Dim


@dataclass(frozen=True)
class Window:
    """One window per spatial axis; all lists have the spatial rank."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def extent(self) -> list[int]:
        """Length of input that one window covers."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    @property
    def pads(self) -> list[int]:
        """Pads in ONNX's order."""
        return [*self.before, *self.after]

    def along(self, axis: int) -> Window:
        """The window of one axis: of size one along the others."""

        def only(values: list[int], rest: int) -> list[int]:
            return [value if a == axis else rest for a, value in enumerate(values)]

        return Window(only(self.kernel, 1), only(self.strides, 1), only(self.dilations, 1),
                      only(self.before, 0), only(self.after, 0))  # fmt: skip


def spatial(ctx: RuleContext, name: Name) -> list[int | None]:
    """Sizes of the axes after batch and channels, None where symbolic."""
    shape = ctx.static_shape(name)
    return list(shape[2:]) if shape is not None else [None] * (ctx.rank(name) - 2)


def spatial_dims(ctx: RuleContext, name: Name) -> list[Dim]:
    """As `spatial`, with the names of symbolic sizes."""
    dims = ctx.dims(name)
    return list(dims[2:]) if dims is not None else [None] * (ctx.rank(name) - 2)


def resolve(
    ctx: RuleContext, node: ForwardNode, kernel: Sequence[int], sizes: Sequence[int | None]
) -> Window:
    """Read strides, dilations and pads of a Conv or pool; auto_pad becomes explicit pads."""
    rank = len(kernel)
    strides = list(node.attributes.get("strides") or [1] * rank)
    dilations = list(node.attributes.get("dilations") or [1] * rank)
    pads = list(node.attributes.get("pads") or [0] * (2 * rank))
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            _same_total(ctx, node, size, (k - 1) * d + 1, s)
            for size, k, d, s in zip(sizes, kernel, dilations, strides, strict=True)
        ]
        small = [t // 2 for t in totals]
        large = [t - t // 2 for t in totals]
        pads = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    elif mode == "VALID":
        pads = [0] * (2 * rank)
    return Window(list(kernel), strides, dilations, pads[:rank], pads[rank:])


def _same_total(
    ctx: RuleContext, node: ForwardNode, size: int | None, extent: int, stride: int
) -> int:
    if stride == 1:
        return extent - 1
    if size is None:
        raise unsupported(
            ctx, node, "auto_pad SAME with a stride needs static spatial dimensions; give them, or "
            "export the model with explicit pads"
        )  # fmt: skip
    return max((-(-size // stride) - 1) * stride + extent - size, 0)


def crop_to(ctx: RuleContext, name: Name, like: Name, sizes: Sequence[int | None]) -> Name:
    """Cut the spatial axes down to those of `like`; nothing where they are known to be equal."""
    have = spatial(ctx, name)
    if None not in have and have == list(sizes):
        return name
    rank = len(sizes)
    ends = ctx.op(
        "Slice", ctx.shape(like), ctx.const(np.array([2])), ctx.const(np.array([2 + rank]))
    )
    zeros = ctx.const(np.zeros(rank, dtype=np.int64))
    return ctx.op("Slice", name, zeros, ends, ctx.const(np.arange(2, 2 + rank)))


def spread(ctx: RuleContext, ct: Name, w: Name, like: Name, window: Window, group: int) -> Name:
    """Convolve `ct` by `w`, transposed, to the spatial size of `like`: the way back of a window.

    Per axis the last window ends e = s (o − 1) + K − b − S beyond `like`: positive, it is cut off
    by a pad of e; negative, −e positions that no window reached are added by output padding. Where
    S is symbolic and not known to be s o, s − 1 are added and the rest is cut off.
    """
    sizes, windows = spatial_dims(ctx, like), spatial_dims(ctx, ct)
    extra, after, open_ended = [], [], False
    for size, count, e, s, b, a in zip(
        sizes, windows, window.extent, window.strides, window.before, window.after, strict=True
    ):
        beyond = difference(count, s, size)
        if beyond is not None:
            excess = beyond - s + e - b
        else:
            excess, open_ended = a if s == 1 else 1 - s, open_ended or s > 1
        extra.append(max(-excess, 0))
        after.append(max(excess, 0))
    full = ctx.op(
        "ConvTranspose", ct, w, kernel_shape=window.kernel, strides=window.strides, group=group,
        dilations=window.dilations, pads=[*window.before, *after], output_padding=extra,
    )  # fmt: skip
    return crop_to(ctx, full, like, spatial(ctx, like)) if open_ended else full
