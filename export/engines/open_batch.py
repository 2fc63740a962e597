"""Leave the batch open in a graph whose other sizes are fixed, where it does not depend on it.

A graph asks for the length of its batch among the other lengths, so that with an open batch none of
its shapes would fold away. Fixed at two batches they all do; where the two graphs are the same but
for the shapes of inputs and outputs, that one graph serves every batch.
"""

from __future__ import annotations

from onnx import ModelProto, ValueInfoProto

BATCHES = 2, 3  # not 1, which would broadcast

Shape = tuple[int, ...]


def open_batch(two: ModelProto, three: ModelProto) -> tuple[ModelProto, dict[str, Shape]] | None:
    """One graph of what was fixed at both of `BATCHES`, its leading dimensions symbolic.

    Returns: the graph, and the shape for a batch of 1 of every input with a symbolic dimension; the
        leading one is in proportion to the batch. None where the graphs differ otherwise.
    """
    if _content(two) != _content(three):
        return None
    model = ModelProto()
    model.CopyFrom(two)
    del model.graph.value_info[:]
    known = {}
    for ours, theirs in zip(_ends(model), _ends(three), strict=True):
        shape, larger = _shape(ours), _shape(theirs)
        if shape == larger:
            continue
        each, rest = divmod(shape[0], BATCHES[0])
        if rest or larger != (BATCHES[1] * each, *shape[1:]):
            return None
        symbol = "batch" if each == 1 else f"batch_{each}"
        ours.type.tensor_type.shape.dim[0].dim_param = symbol
        known[ours.name] = (each, *shape[1:])
    return model, {
        value.name: known[value.name] for value in model.graph.input if value.name in known
    }


def _ends(model: ModelProto) -> list[ValueInfoProto]:
    return [*model.graph.input, *model.graph.output]


def _content(model: ModelProto) -> tuple[object, ...]:
    return (
        [node.SerializeToString(deterministic=True) for node in model.graph.node],
        {t.name: t.SerializeToString(deterministic=True) for t in model.graph.initializer},
        [value.name for value in _ends(model)],
    )


def _shape(value: ValueInfoProto) -> Shape:
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
