"""Rules of `matmul.py`: MatMul of all ranks, Gemm, Einsum."""

from __future__ import annotations

import itertools

import pytest
import torch
from onnx import parser

from unblemish.errors import UnsupportedOperatorError
from unblemish.export import differentiate

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


@pytest.mark.parametrize(("a", "b"), [
    ("19", "19"), ("3,19", "19"), ("19", "19,5"), ("3,19", "19,1"), ("1,1", "1,1"),
    ("2,3,19", "19,5"), ("2,3,19", "19"), ("19", "2,19,5"), ("3,4", "2,4,5"),
    ("2,1,3,4", "5,4,7"), ("2,5,3,4", "1,4,7"), ("N,3,4", "N,4,5"), ("N,3,4", "4,5"),
    ("N,3,4", "1,4,5"),
])  # fmt: skip
def test_matmul_gradient_equals_torch(a, b, check_gradients):
    sizes = {"N": 3}
    shapes = [[int(sizes.get(d, d)) for d in s.split(",")] for s in (a, b)]
    rank = (torch.zeros(shapes[0]) @ torch.zeros(shapes[1])).ndim
    y = ",".join(f"y{i}" for i in range(rank))
    result = f"float[{y}]" if y else "float"
    model = f"{HEAD} g (float[{a}] a, float[{b}] b) => ({result} y) {{ y = MatMul(a, b) }}"
    check_gradients(model, lambda a, b: torch.matmul(a, b), sizes=sizes)


@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product((0, 1), (0, 1))))
@pytest.mark.parametrize("c", ["3,5", "5", "3,1", "1", "", None])
def test_gemm_gradient_equals_torch(trans_a, trans_b, c, check_gradients):
    a, b = ("4,3" if trans_a else "3,4"), ("5,4" if trans_b else "4,5")
    head = f"float[{a}] a, float[{b}] b" + (
        "" if c is None else f", float[{c}] c" if c else ", float c"
    )
    call = "a, b" + ("" if c is None else ", c")
    model = f"""{HEAD} g ({head}) => (float[3,5] y)
        {{ y = Gemm<alpha = 0.5, beta = 1.5, transA = {trans_a}, transB = {trans_b}>({call}) }}"""

    def function(a, b, c=None):
        product = (a.T if trans_a else a) @ (b.T if trans_b else b)
        return 0.5 * product + (0 if c is None else 1.5 * c)

    check_gradients(model, function)


@pytest.mark.parametrize(("equation", "shapes"), [
    ("ij,jk->ik", ("3,4", "4,5")), ("ij,jk", ("3,4", "4,5")), ("bij,bjk->bik", ("2,3,4", "2,4,5")),
    ("i,j->ij", ("3", "5")), ("ij->ji", ("3,4",)), ("ij->i", ("3,4",)), ("ij,ij->", ("3,4", "3,4")),
    ("bhqd,bhkd->bhqk", ("1,2,3,4", "1,2,5,4")), ("ij,jk,kl->il", ("2,3", "3,4", "4,5")),
    ("...ij,...jk->...ik", ("2,3,4", "2,4,5")), ("...ij,jk->...ik", ("6,2,3,4", "4,5")),
    ("nij,njk->nik", ("N,3,4", "N,4,5")),
])  # fmt: skip
def test_einsum_gradient_equals_torch(equation, shapes, check_gradients):
    names = "abc"[: len(shapes)]
    head = ", ".join(f"float[{s}] {n}" for s, n in zip(shapes, names, strict=True))
    concrete = [[int({"N": 3}.get(d, d)) for d in s.split(",")] for s in shapes]
    rank = torch.einsum(equation, *(torch.zeros(s) for s in concrete)).ndim
    y = ",".join(f"y{i}" for i in range(rank))
    result = f"float[{y}]" if y else "float"
    model = f"""{HEAD} g ({head}) => ({result} y)
        {{ y = Einsum<equation = "{equation}">({", ".join(names)}) }}"""
    check_gradients(model, lambda **k: torch.einsum(equation, *k.values()), sizes={"N": 3})


def test_einsum_is_refused_when_an_index_repeats_within_an_operand():
    model = f"""{HEAD} g (float[3,3] a) => (float[3] y) {{ y = Einsum<equation = "ii->i">(a) }}"""
    with pytest.raises(UnsupportedOperatorError, match=r"Einsum, opset 21.*repeats"):
        differentiate(parser.parse_model(model))
