"""int8 by Q/DQ nodes around convolutions and matrix products, with ranges seen on normal images."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from unblemish.errors import CalibrationError, ModelError
from unblemish.export.passes.fold_constants import fold_constants
from unblemish.export.passes.graph_view import GraphView, used_names
from unblemish.export.passes.result import PassResult
from unblemish.export.precision.half import HEAVY
from unblemish.export.precision.lift_opset import lift_opset
from unblemish.export.precision.modelopt import place_by_modelopt

Feeds = Mapping[str, NDArray[Any]]


DEQUANTISE = "DequantizeLinear"


def quantise(
    model: ModelProto, feeds: Sequence[Feeds], *, biases: bool = True, by: str = "onnxruntime"
) -> PassResult:
    """Put Q/DQ pairs where a forward pass is heavy: weights by channel, activations by tensor.

    Both are symmetric, as TensorRT wants them. ONNX Runtime's static quantiser or NVIDIA's
    ModelOpt places the nodes; ranges are the largest values that `feeds` cause. In float32 stay
    what depends on a cotangent (the way back is that of the unquantised graph: straight-through),
    the first operator behind the inputs and the last before each output: 8 bits cost most and save
    least there.

    Args:
        model: forward, fused or backward graph; weights may be stored as float16.
        feeds: inputs of the graph as they occur on normal images.
        biases: quantise biases too, which ONNX Runtime's integer kernels need and TensorRT refuses;
            ModelOpt never does.
        by: one of `unblemish.export.precision.QUANTISERS`.
    Raises: CalibrationError without feeds; ModelError where the quantiser refuses the graph;
        ConfigError where ModelOpt is asked for and not installed.
    """
    plain = fold_constants(lift_opset(model).model).model
    chosen, reasons = choose_nodes(plain)
    if not chosen:
        return PassResult(plain, 0, [*reasons, "nothing heavy is left to quantise"])
    if not feeds:
        raise CalibrationError(
            "int8 ranges need inputs that occurred on normal images, and none were recorded. Give "
            "a folder of normal images with --normals."
        )
    if by == "modelopt":
        made = place_by_modelopt(plain, chosen, feeds)
    else:
        made = _quantised(plain, chosen, feeds, biases)
    placed = _placed(made)
    left = [f"{name}: the quantiser left it in float32" for name in chosen if name not in placed]
    return PassResult(made, len(placed), [*reasons, *left])


def choose_nodes(model: ModelProto) -> tuple[list[str], list[str]]:
    """Names of the nodes to quantise, and why others are not; every node has a name then."""
    _name_nodes(model)
    view = GraphView(model)
    behind = _reached(view, {name for name in view.inputs if name.startswith("ct_")})
    heavy = [
        node
        for node in view.named(*HEAVY)
        if view.is_constant(node.input[1]) and not behind.intersection(node.output)
    ]
    edge = {node.name for node in heavy if _first(view, node) or _last(view, node, behind)}
    reasons = [f"{name}: first or last, stays float32" for name in sorted(edge)]
    return [node.name for node in heavy if node.name not in edge], reasons


def _name_nodes(model: ModelProto) -> None:
    taken = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)


def _reached(view: GraphView, sources: set[str]) -> set[str]:
    """Values that depend on any of the sources."""
    found = set(sources)
    for node in view.nodes:
        if found & used_names(node):
            found |= set(node.output)
    return found


def _first(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether no heavy operator comes before it."""
    seen, queue = set(), [node.input[0]]
    while queue:
        maker = view.producer(queue.pop())
        if maker is None or maker.name in seen:
            continue
        if maker.op_type in HEAVY:
            return False
        seen.add(maker.name)
        queue += used_names(maker)
    return True


def _last(view: GraphView, node: onnx.NodeProto, back: set[str]) -> bool:
    """Whether no heavy operator comes behind it, those of the way back aside."""
    seen, queue = set(), list(node.output)
    while queue:
        for user in view.users(queue.pop()):
            if user.name in seen or back.intersection(user.output):
                continue
            if user.op_type in HEAVY:
                return False
            seen.add(user.name)
            queue += user.output
    return True


def _quantised(
    model: ModelProto, chosen: Sequence[str], feeds: Sequence[Feeds], biases: bool
) -> ModelProto:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="unblemish-") as folder, _quiet():
        source, target = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(source))
        try:
            quantize_static(
                str(source),
                str(target),
                _reader(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted(HEAVY),
                nodes_to_quantize=list(chosen),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": biases,
                },
            )
            return onnx.load(str(target))
        except Exception as error:  # the quantiser raises what its parts happen to raise
            raise ModelError(
                f"ONNX Runtime cannot quantise a graph: {type(error).__name__}: {error}. Export "
                "with --precision fp16 or fp32."
            ) from error


def _placed(model: ModelProto) -> set[str]:
    """Names of the heavy nodes whose input comes out of a DequantizeLinear."""
    view = GraphView(model)
    makers = {node.name: view.producer(node.input[0]) for node in view.named(*HEAVY)}
    return {name for name, maker in makers.items() if maker and maker.op_type == DEQUANTISE}


def _reader(feeds: Sequence[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Feeds] = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            found = next(self._left, None)
            return None if found is None else dict(found)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger to preprocess graphs, which ours have been."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
