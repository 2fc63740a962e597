"""Results for engines of the TensorRT double, which has none of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime


def compute(world: Any) -> Callable[[str, dict[str, Any], dict[str, Any]], None]:
    """For `World.on_execute`: what ONNX Runtime makes of the graph an engine was built of."""
    sessions: dict[bytes, Any] = {}

    def run(name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        if world.model not in sessions:
            sessions[world.model] = onnxruntime.InferenceSession(
                world.model, providers=["CPUExecutionProvider"]
            )
        feeds = {n: np.array(array) for n, array in inputs.items()}
        values = sessions[world.model].run(list(outputs), feeds)
        for view, value in zip(outputs.values(), values, strict=True):
            view[...] = value

    return run
