"""Run an exported graph in ONNX Runtime, as the parity gate does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unblemish.bundle.manifest import GraphRole
from unblemish.errors import ModelError

Array = NDArray[Any]
Graphs = Mapping[GraphRole, Path]


class Engine:
    """An ONNX graph, as a file or in memory, in ONNX Runtime, run on named arrays."""

    def __init__(self, model: onnx.ModelProto | bytes | Path) -> None:
        import onnxruntime

        if isinstance(model, Path):
            content: bytes | str = str(model)
        else:
            content = model if isinstance(model, bytes) else model.SerializeToString()
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                content, settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot load an exported graph: {error}") from error
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run. Feeds that the graph does not read are ignored."""
        try:
            values = self._session.run(None, {name: feeds[name] for name in self.inputs})
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run an exported graph: {error}") from error
        return dict(zip(self.outputs, values, strict=True))


def relative_error(found: Array, expected: Array) -> float:
    """||found - expected|| / ||expected||, in float64."""
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    difference = float(np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64)))
    return difference / max(norm, 1e-30)


_ROLES: dict[str, tuple[GraphRole, GraphRole]] = {
    "generator": ("generator_forward", "generator_backward"),
    "discriminator": ("discriminator_forward", "discriminator_backward"),
    "discriminator_features": ("discriminator_features_forward", "discriminator_features_backward"),
    "finetune": ("finetune_forward", "finetune_backward"),
    "reconstruct": ("reconstruct_forward", "reconstruct_backward"),
}


def pair(
    graphs: Graphs,
    stem: str,
    feeds: Mapping[str, Array],
    cotangents: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run a forward graph and its way back; the outputs of both."""
    there_role, back_role = _ROLES[stem]
    there = Engine(graphs[there_role])(feeds)
    back = Engine(graphs[back_role])({**feeds, **there, **cotangents})
    return there, back
