"""Rules of `arithmetic.py`."""

from __future__ import annotations

import pytest
import torch


def unary(op: str, shape: str = "3,19") -> str:
    return f'<ir_version: 10, opset_import: ["": 21]> g (float[{shape}] x) => (float[{shape}] y) {{ y = {op} }}'


@pytest.mark.parametrize(("op", "function"), [
    ("Neg(x)", torch.neg), ("Abs(x)", torch.abs), ("Exp(x)", torch.exp), ("Erf(x)", torch.erf),
    ("Sin(x)", torch.sin), ("Cos(x)", torch.cos), ("Identity(x)", torch.clone),
    ("Reciprocal(x)", torch.reciprocal),
])  # fmt: skip
def test_unary_gradient_equals_torch(op, function, check_gradients):
    check_gradients(unary(op), lambda x: function(x))
