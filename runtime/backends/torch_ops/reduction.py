"""Reductions, softmax, cumulative sums and ranking."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unblemish.runtime.backends.torch_ops.registry import Tensor, TorchNode, op

Reducer = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _product(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in sorted((d % x.dim() for d in dims), reverse=True):
        x = x.prod(dim=dim, keepdim=keep)
    return x


def _sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(dim=dims, keepdim=keep, dtype=x.dtype)


def _extreme(function: Callable[..., Tensor]) -> Reducer:
    def reduce(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
        return function(x, dim=dims, keepdim=keep)

    return reduce


_REDUCERS: dict[str, Reducer] = {
    "ReduceSum": _sum,
    "ReduceMean": lambda x, d, k: x.mean(dim=d, keepdim=k),
    "ReduceMax": _extreme(torch.amax),
    "ReduceMin": _extreme(torch.amin),
    "ReduceProd": _product,
    "ReduceL1": lambda x, d, k: _sum(x.abs(), d, k),
    "ReduceL2": lambda x, d, k: _sum(x.square(), d, k).sqrt(),
    "ReduceSumSquare": lambda x, d, k: _sum(x.square(), d, k),
    "ReduceLogSum": lambda x, d, k: _sum(x, d, k).log(),
    "ReduceLogSumExp": lambda x, d, k: x.logsumexp(dim=d, keepdim=k),
}


def _register(op_type: str, reducer: Reducer) -> None:
    @op(op_type)
    def run(node: TorchNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = node.ints("axes", axes)
        if not dims:
            if node.get("noop_with_empty_axes", 0):
                return reducer(x.unsqueeze(0), (0,), False)
            dims = list(range(x.dim()))
        return (
            reducer(x, tuple(dims), bool(node.get("keepdims", 1)))
            if x.dim()
            else reducer(x[None], (0,), False)
        )


for _op_type, _reducer in _REDUCERS.items():
    _register(_op_type, _reducer)


def _softmax(node: TorchNode, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    if node.opset >= 13:
        return function(x, dim=node.get("axis", -1))
    # Before opset 13 all axes from `axis` on are taken together.
    axis = node.get("axis", 1) % x.dim()
    return function(x.flatten(axis), dim=axis).reshape(x.shape)


@op("Softmax")
def softmax(node: TorchNode, x: Tensor) -> Tensor:
    """e^x over its sum along `axis`."""
    return _softmax(node, x, torch.softmax)


@op("LogSoftmax")
def log_softmax(node: TorchNode, x: Tensor) -> Tensor:
    """Logarithm of the softmax along `axis`."""
    return _softmax(node, x, torch.log_softmax)


@op("Hardmax")
def hardmax(node: TorchNode, x: Tensor) -> Tensor:
    """1 at the first largest element, else 0."""
    axis = node.get("axis", -1 if node.opset >= 13 else 1) % x.dim()
    flat = x if node.opset >= 13 else x.flatten(axis)
    return (
        torch.zeros_like(flat).scatter(axis, flat.argmax(axis, keepdim=True), 1.0).reshape(x.shape)
    )


@op("CumSum")
def cumsum(node: TorchNode, x: Tensor, axis: Tensor) -> Tensor:
    """Running sum, from the end where reverse, without the element itself where exclusive."""
    dim = int(axis.item())
    ordered = x.flip(dim) if node.get("reverse", 0) else x
    total = ordered.cumsum(dim, dtype=x.dtype)
    total = total - ordered if node.get("exclusive", 0) else total
    return total.flip(dim) if node.get("reverse", 0) else total


@op("TopK")
def top_k(node: TorchNode, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along `axis` in order, the lower index first among equals."""
    count = int(k.item()) if k is not None else int(node.get("k"))
    axis, largest = node.get("axis", -1), bool(node.get("largest", 1))
    values, index = x.sort(dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), index.narrow(axis, 0, count)


@op("ArgMax", "ArgMin")
def arg_extreme(node: TorchNode, x: Tensor) -> Tensor:
    """Index of the first (or last) largest or smallest element along `axis`."""
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    function = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    if not node.get("select_last_index", 0):
        return function(x, dim=axis, keepdim=keep)
    last: int = x.shape[axis] - 1
    return last - function(x.flip(axis), dim=axis, keepdim=keep)
