"""Rules of `trigonometric.py`: against torch autograd, and against central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "Tan": torch.tan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
}


@pytest.mark.parametrize("op", FUNCTIONS)
def test_gradient_equals_torch(
    op: str, check_gradients: Callable[..., Any], rng: np.random.Generator
) -> None:
    low, high = (1.2, 3.0) if op == "Acosh" else (-0.8, 0.8)
    check_gradients(
        '<ir_version: 10, opset_import: ["": 21]> '
        f"g (float[N, 19] x) => (float[N, 19] y) {{ y = {op}(x) }}",
        lambda x: FUNCTIONS[op](x),
        sizes={"N": 3},
        inputs={"x": rng.uniform(low, high, (3, 19)).astype(np.float32)},
    )
