"""Rules of `generated.py`: against torch autograd, and against central differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

HEAD = '<ir_version: 10, opset_import: ["": 21]> '
Check = Callable[..., Any]


@pytest.mark.parametrize("axis", [-1, 0])
def test_one_hot_gradient_of_the_values_equals_torch(axis: int, check_gradients: Check) -> None:
    index = np.array([0, 3, -1, 7, 3])  # 7 is out of range: the off value everywhere

    def function(v: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        wrapped = torch.where(i < 0, i + 4, i)
        hot = wrapped.unsqueeze(axis) == torch.arange(4).reshape((-1, 1) if axis == 0 else (1, -1))
        return torch.where(hot, v[1], v[0])

    check_gradients(
        HEAD + "g (float[2] v, int64[5] i) => (float[a, b] y) <int64 depth = {4}> "
        f"{{ y = OneHot<axis = {axis}>(i, depth, v) }}",
        function,
        wrt=["v"],
        inputs={"i": index},
    )


def test_range_gradient_equals_torch(check_gradients: Check) -> None:
    check_gradients(
        HEAD + "g (float start, float delta) => (float[n] y) <float limit = {3.05}> "
        "{ y = Range(start, limit, delta) }",
        lambda start, delta: start + torch.arange(7) * delta,
        inputs={
            "start": np.array(0.1, np.float32),
            "delta": np.array(0.45, np.float32),
        },
    )
