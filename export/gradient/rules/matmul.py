"""Gradients of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unblemish.export.gradient.rule import ForwardNode, Name, RuleContext, rule, unsupported

Names = Sequence[Name | None]


@rule("MatMul")
def matmul(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Y = A B over the last two axes: grad_A = ct Bᵀ, grad_B = Aᵀ ct, summed where broadcast."""
    ct, (a, b) = cotangents[0], node.inputs
    assert ct is not None
    rank_a, rank_b = ctx.rank(a), ctx.rank(b)
    # Vectors become a row or a column; the cotangent regains the axis that the product dropped.
    wide_a = _unsqueeze(ctx, a, 0) if rank_a == 1 else a
    wide_b = _unsqueeze(ctx, b, 1) if rank_b == 1 else b
    if rank_b == 1:
        ct = _unsqueeze(ctx, ct, -1)
    if rank_a == 1:
        ct = _unsqueeze(ctx, ct, -2)
    grad_a = ctx.sum_to(_times_transposed(ctx, ct, wide_b), a) if ctx.needs(a) else None
    grad_b = None
    if ctx.needs(b):
        grad_b = _transposed_times(ctx, wide_a, ct, rank_b)
        if rank_b == 1:
            grad_b = ctx.op("Squeeze", grad_b, ctx.const(np.array([-1])))
        grad_b = ctx.sum_to(grad_b, b)
    return [grad_a, grad_b]


def _unsqueeze(ctx: RuleContext, name: Name, axis: int) -> Name:
    return ctx.op("Unsqueeze", name, ctx.const(np.array([axis])))


def _swap(ctx: RuleContext, name: Name) -> Name:
    perm = list(range(ctx.rank(name)))
    perm[-2:] = perm[-1], perm[-2]
    return ctx.op("Transpose", name, perm=perm)


def _times_transposed(ctx: RuleContext, ct: Name, b: Name) -> Name:
    """ct Bᵀ; Gemm spares the transpose where both are matrices."""
    if ctx.rank(ct) == 2 and ctx.rank(b) == 2:
        return ctx.op("Gemm", ct, b, transB=1)
    return ctx.op("MatMul", ct, _swap(ctx, b))


def _transposed_times(ctx: RuleContext, a: Name, ct: Name, rank_b: int) -> Name:
    """Aᵀ ct; for one matrix B the batch axes are rows of one tall product."""
    if rank_b <= 2 and ctx.rank(a) >= 2 and ctx.rank(a) == ctx.rank(ct):
        return ctx.op("Gemm", _rows(ctx, a), _rows(ctx, ct), transA=1)
    return ctx.op("MatMul", _swap(ctx, a), ct)


def _rows(ctx: RuleContext, name: Name) -> Name:
    """All axes but the last in one."""
    if ctx.rank(name) == 2:
        return name
    last = ctx.op("Slice", ctx.shape(name), ctx.const(np.array([-1])), ctx.const(np.array([2**31])))
    target = ctx.op("Concat", ctx.const(np.array([-1])), last, axis=0)
    return ctx.op("Reshape", name, target)


@rule("Gemm")
def gemm(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Y = α A' B' + β C, A' and B' transposed on demand."""
    ct, (a, b) = cotangents[0], node.inputs[:2]
    assert ct is not None
    c = node.input(2)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    trans_a, trans_b = node.attributes.get("transA", 0), node.attributes.get("transB", 0)
    return [
        _gemm_a(ctx, ct, b, alpha, trans_a, trans_b) if ctx.needs(a) else None,
        _gemm_b(ctx, ct, a, alpha, trans_a, trans_b) if ctx.needs(b) else None,
        ctx.sum_to(ctx.op("Mul", ct, ctx.scalar(beta, ct)), c) if c and ctx.needs(c) else None,
    ]


def _gemm_a(ctx: RuleContext, ct: Name, b: Name, alpha: float, trans_a: int, trans_b: int) -> Name:
    if trans_a:  # A'ᵀ = A, so grad_A = (α ct B'ᵀ)ᵀ = α B' ctᵀ
        return ctx.op("Gemm", b, ct, alpha=alpha, transA=trans_b, transB=1)
    return ctx.op("Gemm", ct, b, alpha=alpha, transB=1 - trans_b)


def _gemm_b(ctx: RuleContext, ct: Name, a: Name, alpha: float, trans_a: int, trans_b: int) -> Name:
    if trans_b:  # grad_B = (α A'ᵀ ct)ᵀ = α ctᵀ A'
        return ctx.op("Gemm", ct, a, alpha=alpha, transA=1, transB=trans_a)
    return ctx.op("Gemm", a, ct, alpha=alpha, transA=1 - trans_a)


@rule("Einsum")
def einsum(ctx: RuleContext, node: ForwardNode, cotangents: Names) -> Names:
    """Swap roles: the cotangent takes the operand's place, the operand's subscripts are the result.

    An index that only one operand has is summed away in Y: its gradient is spread over that axis.
    """
    ct = cotangents[0]
    terms, result = _subscripts(ctx, node)
    return [
        _einsum_operand(ctx, node, ct, terms, result, i) if ctx.needs(name) else None
        for i, name in enumerate(node.inputs)
    ]


def _subscripts(ctx: RuleContext, node: ForwardNode) -> tuple[list[str], str]:
    """Terms of the operands and of the result, the ellipsis written out in free letters."""
    equation = str(node.attributes["equation"]).replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        single = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        result = ("..." if "..." in left else "") + single
    free = [c for c in map(chr, range(ord("a"), ord("z") + 1)) if c not in equation]
    widths = [
        ctx.rank(n) - len(t.replace("...", "")) for n, t in zip(node.inputs, terms, strict=True)
    ]
    widest = "".join(
        free[: max([w for w, t in zip(widths, terms, strict=True) if "..." in t] or [0])]
    )
    full = [t.replace("...", widest[len(widest) - w :]) for t, w in zip(terms, widths, strict=True)]
    for term in full:
        if len(set(term)) != len(term):
            raise unsupported(ctx, node, f"an index repeats within the operand '{term}'")
    return full, result.replace("...", widest)


def _einsum_operand(
    ctx: RuleContext, node: ForwardNode, ct: Name | None, terms: list[str], result: str, index: int
) -> Name:
    operand, term = node.inputs[index], terms[index]
    others = [(n, t) for i, (n, t) in enumerate(zip(node.inputs, terms, strict=True)) if i != index]
    known = set(result).union(*(t for _, t in others))
    reachable = "".join(c for c in term if c in known)
    left = ",".join([result, *(t for _, t in others)])
    grad = ctx.op("Einsum", ct, *(n for n, _ in others), equation=f"{left}->{reachable}")
    if reachable != term:
        lost = [i for i, c in enumerate(term) if c not in known]
        grad = ctx.op("Unsqueeze", grad, ctx.const(np.array(lost)))
        grad = ctx.op("Expand", grad, ctx.shape(operand))
    return ctx.sum_to(grad, operand)
