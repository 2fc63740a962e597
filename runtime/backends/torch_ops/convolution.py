"""Conv and ConvTranspose of rank 1 to 3."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import functional as F

from unblemish.errors import ShapeError
from unblemish.runtime.backends.torch_ops.registry import Tensor, TorchNode, op
from unblemish.runtime.backends.torch_ops.windows import flat_pads, spread, window

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def spatial_rank(node: TorchNode, x: Tensor) -> int:
    """Number of spatial axes. Raises: ShapeError where not 1, 2 or 3."""
    rank = x.dim() - 2
    if rank not in (1, 2, 3):
        raise ShapeError(
            f"{node.op_type} '{node.name}' has an input of shape {tuple(x.shape)}; "
            "expected batch, channels and 1 to 3 spatial axes."
        )
    return rank


@op("Conv")
def conv(node: TorchNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Correlation with weight (out, in/group, *kernel)."""
    rank = spatial_rank(node, x)
    geometry = window(node, tuple(weight.shape[2:]), tuple(x.shape[2:]))
    padding: tuple[int, ...] = tuple(before for before, _ in geometry.pads)
    if not geometry.symmetric:
        x, padding = F.pad(x, flat_pads(geometry.pads)), (0,) * rank
    group = node.get("group", 1)
    return _CONV[rank](x, weight, bias, geometry.stride, padding, geometry.dilation, group)


@op("ConvTranspose")
def conv_transpose(
    node: TorchNode, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The transpose of a convolution, weight (in, out/group, *kernel).

    Computed without padding, then cropped by the pads and extended by the output padding.
    """
    rank = spatial_rank(node, x)
    stride = tuple(node.get("strides", [1] * rank))
    dilation = tuple(node.get("dilations", [1] * rank))
    full = tuple(
        (n - 1) * s + e
        for n, s, e in zip(
            x.shape[2:], stride, spread(tuple(weight.shape[2:]), dilation), strict=True
        )
    )
    pads = _transposed_pads(node, tuple(x.shape[2:]), full, stride)
    extra = node.get("output_padding", [0] * rank)
    near = tuple(before for before, _ in pads)
    group = node.get("group", 1)
    function = _TRANSPOSED[rank]
    if near == tuple(after for _, after in pads) and not any(extra):
        return function(x, weight, bias, stride, near, 0, group, dilation)
    y = function(x, weight, None, stride, 0, 0, group, dilation)
    y = F.pad(y, flat_pads(tuple((-b, e - a) for (b, a), e in zip(pads, extra, strict=True))))
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def _transposed_pads(
    node: TorchNode, lengths: tuple[int, ...], full: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    rank = len(lengths)
    auto = node.get("auto_pad", "NOTSET")
    shape = node.get("output_shape")
    if shape is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = [n * s for n, s in zip(lengths, stride, strict=True)]
    if shape is None:
        flat = node.get("pads", [0] * 2 * rank) if auto != "VALID" else [0] * 2 * rank
        return tuple((flat[i], flat[i + rank]) for i in range(rank))
    extra = node.get("output_padding", [0] * rank)
    pads = []
    for f, e, target in zip(full, extra, shape[-rank:], strict=True):
        total = f + e - target
        small, large = total // 2, total - total // 2
        pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return tuple(pads)
