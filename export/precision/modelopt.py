"""Q/DQ nodes placed by NVIDIA's ModelOpt, where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from unblemish.errors import ConfigError, ModelError

Feeds = Mapping[str, NDArray[Any]]


def require_modelopt() -> None:
    """Raise ConfigError where ModelOpt is not installed."""
    if util.find_spec("modelopt") is None:
        raise ConfigError(
            "ModelOpt is not installed. pip install 'nvidia-modelopt[onnx]' in an environment of "
            "its own, since it asks for certain versions of onnx and onnxruntime; or leave "
            "--quantiser out."
        )


def place_by_modelopt(
    model: ModelProto, chosen: Sequence[str], feeds: Sequence[Feeds]
) -> ModelProto:
    """Put Q/DQ pairs around the nodes chosen; biases stay whole, as TensorRT wants them.

    Ranges are the largest absolute values that `feeds` cause, found on the CPU. It runs in a
    process of its own, because it changes ONNX Runtime's quantiser wherever it is used.
    Raises: ConfigError without ModelOpt; ModelError where it refuses the graph.
    """
    require_modelopt()
    with tempfile.TemporaryDirectory(prefix="unblemish-") as name:
        folder = Path(name)
        onnx.save(model, str(folder / "plain.onnx"))
        (folder / "chosen.json").write_text(json.dumps(list(chosen)))
        for number, feed in enumerate(feeds):
            np.savez(folder / f"{number}.npz", **dict[str, Any](feed))
        job = [sys.executable, "-m", "unblemish.export.precision.modelopt_job", name]
        done = subprocess.run(job, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ModelError(
                f"ModelOpt cannot quantise a graph: {said}. Leave --quantiser out, or export with "
                "--precision fp16 or fp32."
            )
        return with_shapes_of(onnx.load(str(folder / "int8.onnx")), model)


def with_shapes_of(made: ModelProto, model: ModelProto) -> ModelProto:
    """`made` with the inputs and outputs of `model`: ModelOpt states the shapes of the feeds.

    What is stated of inner tensors goes too, since it holds for these shapes alone.
    """
    result = ModelProto()
    result.CopyFrom(made)
    for field in ("input", "output"):
        stated = {value.name: value for value in getattr(model.graph, field)}
        for value in getattr(result.graph, field):
            value.CopyFrom(stated[value.name])
    del result.graph.value_info[:]
    return result
