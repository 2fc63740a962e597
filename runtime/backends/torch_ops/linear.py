"""Matrix products."""

from __future__ import annotations

import torch

from unblemish.runtime.backends.torch_ops.registry import Tensor, TorchNode, op, register_all

register_all({"MatMul": torch.matmul})


@op("Gemm")
def gemm(node: TorchNode, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha A B + beta C with A and B transposed where asked for."""
    product = (a.T if node.get("transA", 0) else a) @ (b.T if node.get("transB", 0) else b)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = product if alpha == 1.0 else alpha * product
    return product if c is None else product + (c if beta == 1.0 else beta * c)


@op("Einsum")
def einsum(node: TorchNode, *inputs: Tensor) -> Tensor:
    """Einstein summation, ellipsis and implicit output included."""
    return torch.einsum(str(node.get("equation")).replace(" ", ""), *inputs)
