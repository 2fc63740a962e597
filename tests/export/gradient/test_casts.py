"""CastLike: the cotangent comes back in the input's own type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def test_cast_like_gradient_equals_torch(check_gradients: Callable[..., Any]) -> None:
    check_gradients(
        '<ir_version: 10, opset_import: ["": 21]> '
        "g (float[N, 7] x, double[1] like) => (double[N, 7] y) { y = CastLike(x, like) }",
        lambda x, like: x.to(torch.float64),
        wrt=["x"],
        sizes={"N": 3},
    )
