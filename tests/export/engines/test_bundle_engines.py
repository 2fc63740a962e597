"""Engines of whole bundles, built and run through the double."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from unblemish.bundle import Bundle
from unblemish.export.engines.options import EngineOptions


def compute(bundle: Bundle) -> Any:
    """Lets the double's engines give what ONNX Runtime gives for the graph of their name."""

    def run(name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        session = onnxruntime.InferenceSession(
            str(bundle.graph(name)),
            providers=["CPUExecutionProvider"],  # type: ignore[arg-type]
        )
        values = session.run(list(outputs), {n: np.array(a) for n, a in inputs.items()})
        for view, value in zip(outputs.values(), values, strict=True):
            view[...] = value

    return run


@pytest.fixture
def built(tensorrt: Any, vae_bundle: Path) -> tuple[Any, Bundle, list[str]]:
    from unblemish.export.engines.bundle_engines import build_engines

    bundle = Bundle.open(vae_bundle)
    tensorrt.on_execute = compute(bundle)
    lines: list[str] = []
    made = build_engines(
        bundle, EngineOptions(batch=5, usual_batch=2), memory=tensorrt.memory_of(tensorrt),
        say=lines.append,
    )  # fmt: skip
    return tensorrt, made, lines


def test_engines_are_named_by_graph_version_chip_and_system(built: Any) -> None:
    world, bundle, _ = built
    opened = Bundle.open(bundle.path)  # verifies
    roles = {record.role for record in opened.manifest.engines}
    assert roles == set(opened.manifest.graphs)
    for record in opened.manifest.engines:
        assert f"-trt{world.version}-sm87-" in record.file
        assert record.graph_sha256[:16] in record.file
        assert record.file in opened.manifest.files
        assert record.parity is not None
        assert record.parity < 1e-6
