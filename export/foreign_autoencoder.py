"""Autoencoders that were not trained as such here: checkpoints with both halves, ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from unblemish.errors import ModelError
from unblemish.export.flops import cost, value_shapes
from unblemish.export.keep_batch import keep_batch
from unblemish.export.onnx_source import BATCH, image_output, open_model, range_of, rename
from unblemish.export.options import ExportOptions
from unblemish.export.source import IMAGE, Original

if TYPE_CHECKING:
    from unblemish.export.energy_plan import AutoencoderSource

RECONSTRUCTION = "reconstruction"
_SMALLEST = 8  # px: what is smaller is taken for a latent with two axes


def open_halves(path: Path) -> AutoencoderSource:
    """Encoder and decoder of any known checkpoint that has both, one after the other.

    Raises: ModelError where it is damaged, unknown, or has no encoder.
    """
    from unblemish.export.energy_plan import AutoencoderSource
    from unblemish.export.from_torch import to_onnx
    from unblemish.export.models.checkpoint import load_model
    from unblemish.export.models.halves import Halves

    model = load_model(path)
    if model.encoder is None:
        raise ModelError(
            f"{path} holds a generator of kind '{model.kind}' without an encoder; energy "
            "projection needs both. Leave out --method energy to search its latent."
        )
    halves = Halves(model.encoder, model.generator).eval()
    shape = (model.channels, model.size, model.size)
    return AutoencoderSource(
        halves.kind, "l2",
        to_onnx(halves, shape, input_name=IMAGE, output_name=halves.outputs), halves.outputs,
        model.latent, *shape, sum(p.numel() for p in halves.parameters()), None, (),
        halves, dict(model.preprocess), model.low, model.high,
    )  # fmt: skip


def open_onnx_autoencoder(path: Path, options: ExportOptions) -> AutoencoderSource | None:
    """Any ONNX model from an image to its reconstruction, as it is.

    Returns: None for a model whose input and output are not images of the same fixed size, unless
        energy projection was asked for.
    Raises: ModelError where the file is damaged, or is no autoencoder and should be; ConfigError
    where the range of intensities must be stated.
    """
    from unblemish.export.energy_plan import AutoencoderSource

    model = open_model(path)
    found = None if options.latent_input else _picture(model)
    if found is None or options.method == "rgi":
        if options.method == "energy":
            raise ModelError(
                f"{path} is no autoencoder: energy projection needs a model with one float32 input "
                "(batch, 1 or 3, height, width) of fixed height and width and an output of the "
                "same shape. Export the network again so."
            )
        return None
    name, (channels, height, width) = found
    content = model.SerializeToString()  # not the file, whose weights may be in another one
    output = image_output(model, options, path)
    original = Original(content, name, output.name, (channels, height, width))
    low, high = options.value_range or range_of(model, output.name, path)
    rename(model, name, IMAGE)
    rename(model, output.name, RECONSTRUCTION)
    model = _freed(model)
    return AutoencoderSource(
        "onnx", "l2", model, (RECONSTRUCTION,), 0, channels, height, width,
        cost(model).parameters, None, (), _oracle(model), low=low, high=high, original=original,
    )  # fmt: skip


def _picture(model: onnx.ModelProto) -> tuple[str, tuple[int, int, int]] | None:
    """Name and (channels, height, width) of the input, where an output has that shape too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        return None
    dims = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    if len(dims) != 4 or dims[1] not in (1, 3) or min(dims[2:]) < _SMALLEST:
        return None
    shapes = value_shapes(model)
    if not any(tuple(shapes.get(o.name, ()))[1:] == tuple(dims[1:]) for o in model.graph.output):
        return None
    return inputs[0].name, (dims[1], dims[2], dims[3])


def _freed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model for any batch."""
    for value in (model.graph.input[0], model.graph.output[0]):
        first = value.type.tensor_type.shape.dim[0]
        first.Clear()
        first.dim_param = BATCH
    del model.graph.value_info[:]  # they may state the old batch
    return keep_batch(model)


def _oracle(model: onnx.ModelProto) -> Any:
    """The graph in torch, for its gradient; None without torch."""
    from unblemish.export.parity.oracles import has_torch

    if not has_torch():
        return None
    from unblemish.export.models.halves import Whole

    return Whole(model)
