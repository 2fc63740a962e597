"""Read an ONNX model from a path or a ModelProto; a clear error for everything that is not one."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import uses_external_data

from unblemish.errors import ModelError
from unblemish.export.gradient.lighten import lightened


def read_model(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Return a private copy of the model, its external data loaded.

    Args:
        model: path of an .onnx file (external data beside it), or a ModelProto.
    Returns: a ModelProto owned by the caller; the argument is never changed.
    Raises: ModelError when the file is missing, no ONNX, cut short, or without its external data.
    """
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        _refuse_unloaded(copy, "the ModelProto given")
        return _checked(copy, "the ModelProto given")
    if not isinstance(model, (str, Path)):
        raise ModelError(
            f"expected a path or an onnx.ModelProto, found {type(model).__name__}; "
            "load the model first"
        )
    path = Path(model)
    if not path.is_file():
        raise ModelError(f"no ONNX model at '{path}': expected a file; check the path")
    return _checked(_load(path), f"'{path}'")


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except (DecodeError, UnicodeDecodeError, ValueError) as cause:
        raise ModelError(
            f"'{path}' cannot be read as ONNX (expected a ModelProto, found {path.stat().st_size} "
            f"bytes that do not parse: {cause}); export or copy the model again"
        ) from cause
    except (FileNotFoundError, onnx.checker.ValidationError, OSError) as cause:
        raise ModelError(
            f"'{path}' refers to external data that cannot be read ({cause}); "
            "put the data file beside the model, or save the model in one file"
        ) from cause


def _refuse_unloaded(model: onnx.ModelProto, where: str) -> None:
    missing = [t.name for t in model.graph.initializer if uses_external_data(t)]
    if missing:
        raise ModelError(
            f"{where} keeps {len(missing)} tensors in external data (first: '{missing[0]}'), which "
            "is not loaded; pass the path, or call onnx.load_external_data_for_model first"
        )


def _checked(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    if not model.graph.node or not model.opset_import:
        raise ModelError(
            f"{where} is no ONNX model with a graph: found {len(model.graph.node)} nodes and "
            f"{len(model.opset_import)} opset imports; export the model again"
        )
    try:
        onnx.checker.check_model(lightened(model)[0])
    except (onnx.checker.ValidationError, ValueError) as cause:
        raise ModelError(
            f"{where} breaks the ONNX specification: {cause}; export it again"
        ) from cause
    return model
