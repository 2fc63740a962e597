"""An inpainter of the user's own, such as a masked autoencoder, for a detector's bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from unblemish.errors import ModelError, UnblemishError
from unblemish.export.onnx_source import open_model, rename

IMAGE, MASK, RESTORED = "image", "mask", "restored"
_HOLE = 0.25  # share of a side that the hole of the trial has


def open_inpainter(path: Path) -> onnx.ModelProto:
    """Read a network that fills holes, and name its ends.

    It takes images (batch, C, h, w) float32 in [0, 1], C 1 or 3, their holes filled with 0.5, and
    masks (batch, 1, h, w) float32, 1 in the hole, with h and w fixed; its first output of four
    dimensions is the image restored. Inputs are told apart by their names 'image' and 'mask', or
    else by their channels.

    Returns: the model with inputs 'image' and 'mask' and the one output 'restored'.
    Raises: ModelError where the file is damaged or its inputs and outputs do not fit.
    """
    model = open_model(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    image, mask = _told_apart(inputs, path)
    restored = next((v for v in model.graph.output if len(_dims(v)) in (0, 4)), None)
    if restored is None:
        raise ModelError(
            f"{path} has no output of four dimensions, the restored image; its outputs are "
            f"{_stated(model.graph.output)}."
        )
    kept = restored.name
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info(kept, TensorProto.FLOAT, [*_dims(image)])
    )
    for old, new in ((image.name, IMAGE), (mask.name, MASK), (kept, RESTORED)):
        rename(model, old, new)
    return model


def check_inpainter(path: Path, name: str) -> None:
    """Fill a hole once, as inspection does.

    Args:
        path: of the graph as shipped. name: of the file the user gave.
    Raises: ModelError where the network does not run, or gives no image.
    """
    from unblemish.runtime.backends.onnxruntime import OrtBackend
    from unblemish.runtime.inpainting import OnnxInpainter

    inpainter = OnnxInpainter(OrtBackend(), str(path))
    channels, height, width = inpainter.shape
    image = np.random.default_rng(0).random((height, width, channels), dtype=np.float32)
    hole = np.zeros((height, width), np.bool_)
    rows, columns = (max(round(_HOLE * side), 1) for side in (height, width))
    hole[rows : 2 * rows, columns : 2 * columns] = True
    try:
        filled = inpainter(image, hole)
    except (UnblemishError, ValueError, IndexError) as error:
        raise ModelError(
            f"{name} does not fill holes of images of {width} x {height} px: {error}. Nothing was "
            "written."
        ) from error
    if not np.isfinite(filled).all():
        raise ModelError(f"{name} fills holes with NaN or infinity. Nothing was written.")


def _told_apart(
    inputs: Sequence[onnx.ValueInfoProto], path: Path
) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """Image and mask. Raises: ModelError where it is not clear which is which, or one is none."""
    named = {value.name: value for value in inputs}
    image, mask = named.get(IMAGE), named.get(MASK)
    if image is None or mask is None:
        of = {_channels(value): value for value in inputs}
        image, mask = of.get(3), of.get(1)
    floats = all(v.type.tensor_type.elem_type == TensorProto.FLOAT for v in inputs)
    if len(inputs) == 2 and floats and image is not None and mask is not None:
        sizes = [tuple(_dims(v)[2:]) for v in (image, mask)]
        fixed = sizes[0] == sizes[1] and all(isinstance(side, int) for side in sizes[0])
        if fixed and _channels(image) in (1, 3) and _channels(mask) == 1:
            return image, mask
    raise ModelError(
        f"{path}: an inpainter takes 'image' (batch, 1 or 3, h, w) and 'mask' (batch, 1, h, w), "
        f"float32, with h and w fixed and equal; this one takes {_stated(inputs)}."
    )


def _channels(value: onnx.ValueInfoProto) -> int | str | None:
    dims = _dims(value)
    return dims[1] if len(dims) == 4 else None


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _stated(values: Sequence[onnx.ValueInfoProto]) -> str:
    return "; ".join(
        f"'{v.name}' {helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)} "
        f"({', '.join(map(str, _dims(v)))})"
        for v in values
    )
