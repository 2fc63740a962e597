"""Sliding windows: strides, dilations and explicit or automatic padding of Conv and the pools."""

from __future__ import annotations

from dataclasses import dataclass

from unblemish.runtime.backends.torch_ops.registry import TorchNode


@dataclass(frozen=True)
class Window:
    """Geometry per spatial axis; `pads` as (before, after), `target` the number of windows."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    target: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        """Whether both ends of every axis are padded alike."""
        return all(before == after for before, after in self.pads)


def spread(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Extent of a dilated kernel."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def window(node: TorchNode, kernel: tuple[int, ...], lengths: tuple[int, ...]) -> Window:
    """Geometry of a node's windows over spatial `lengths`."""
    rank = len(kernel)
    stride = tuple(node.get("strides", [1] * rank))
    dilation = tuple(node.get("dilations", [1] * rank))
    extent = spread(kernel, dilation)
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same(lengths, extent, stride, upper=auto == "SAME_UPPER")
    elif auto == "VALID":
        pads = ((0, 0),) * rank
    else:
        flat = node.get("pads", [0] * 2 * rank)
        pads = tuple((flat[i], flat[i + rank]) for i in range(rank))
    ceil = bool(node.get("ceil_mode", 0))
    target = tuple(
        _count(n, e, s, p, ceil) for n, e, s, p in zip(lengths, extent, stride, pads, strict=True)
    )
    return Window(kernel, stride, dilation, pads, target)


def flat_pads(pads: tuple[tuple[int, int], ...]) -> list[int]:
    """Padding in the order of torch.nn.functional.pad: last axis first."""
    return [side for pair in reversed(pads) for side in pair]


def exact_pads(geometry: Window, lengths: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Pads with which the windows end exactly at the border (the far one may crop)."""
    extent = spread(geometry.kernel, geometry.dilation)
    return tuple(
        (before, (count - 1) * s + e - n - before)
        for n, e, s, count, (before, _) in zip(
            lengths, extent, geometry.stride, geometry.target, geometry.pads, strict=True
        )
    )


def _same(
    lengths: tuple[int, ...], extent: tuple[int, ...], stride: tuple[int, ...], *, upper: bool
) -> tuple[tuple[int, int], ...]:
    pads = []
    for n, e, s in zip(lengths, extent, stride, strict=True):
        missing = max((-(-n // s) - 1) * s + e - n, 0)
        small, large = missing // 2, missing - missing // 2
        pads.append((small, large) if upper else (large, small))
    return tuple(pads)


def _count(n: int, extent: int, stride: int, pads: tuple[int, int], ceil: bool) -> int:
    room = n + sum(pads) - extent
    count = (-(-room // stride) if ceil else room // stride) + 1
    # A window that would start behind the input and its near padding is left out.
    return count - 1 if ceil and (count - 1) * stride >= n + pads[0] else count
