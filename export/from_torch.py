"""From a torch network to a plain ONNX model: float32, symbolic batch, standard operators."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence

import onnx
import torch
from torch import nn

from unblemish.errors import MissingDependencyError, ModelError
from unblemish.export.keep_batch import keep_batch
from unblemish.export.passes import (
    drop_dead_nodes,
    drop_identities,
    fold_constants,
    optimise,
)
from unblemish.export.weights import weights_of

OPSET = 20
BATCH = "batch"


def to_onnx(
    network: nn.Module,
    shape: Sequence[int],
    *,
    input_name: str,
    output_name: str | Sequence[str],
    fold: bool = True,
    any_size: bool = False,
) -> onnx.ModelProto:
    """Export a network of one input and one output, or several named in the order returned.

    Args:
        network: in inference mode, without gradients, float32.
        shape: of the input without the batch.
        fold: compute constant expressions; without it every parameter stays an initialiser of its
            own name, as fine-tuning needs.
        any_size: leave height and width of an image (C, H, W) open; `shape` is then an example.
    Returns: a model of opset 20 whose input and output have the symbolic first dimension 'batch'.
    Raises: ModelError where torch cannot trace the network; MissingDependencyError without
    onnxscript.
    """
    names = [output_name] if isinstance(output_name, str) else list(output_name)
    # Two items: a batch of one would be taken for a constant.
    example = torch.zeros(2, *shape)
    free: dict[int, object] = {0: torch.export.Dim(BATCH)}
    if any_size:
        free |= dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                input_names=[input_name],
                output_names=names,
                dynamic_shapes=(free,),
                opset_version=OPSET,
                dynamo=True,
                optimize=fold,
                verbose=False,
            )
    except ImportError as error:
        raise MissingDependencyError("onnxscript", "train", "export from torch") from error
    except Exception as error:
        raise ModelError(
            f"torch cannot export {type(network).__name__} to ONNX: {error}. "
            "Export it yourself and give the .onnx file."
        ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return _cleaned(model if fold else _settled(model))


def _settled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold what is constant, shapes and axes, but leave the weights as they are."""
    names = weights_of(model)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in names]
    inputs = len(model.graph.input)
    for tensor in weights:
        model.graph.initializer.remove(tensor)
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    settled = optimise(model, (fold_constants, drop_identities, drop_dead_nodes))
    del settled.graph.input[inputs:]
    settled.graph.initializer.extend(weights)
    return settled


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what only the exporter reads, which is most of the text of a model."""
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(keep_batch(model))
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """The exporter prints progress and warns of its own internals."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
