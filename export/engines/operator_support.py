"""Which ONNX operators TensorRT takes, as its parser's documentation lists them by version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto

from unblemish.errors import UnsupportedOperatorError
from unblemish.export.engines.operator_restrictions import RESTRICTIONS
from unblemish.export.passes.graph_view import DEFAULT_DOMAINS, GraphView, label

Version = tuple[int, int]

SUPPORTED_VERSIONS: tuple[Version, ...] = ((10, 0), (10, 15), (11, 0))
"""The first version of each table; an export is held against all of them."""

_FILE = Path(__file__).parent / "operator_support.json"
_ELEMENTS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
}
# The documentation states the types of the data: of a choice, those of its branches.
_DATA_INPUT = {"Where": 1}


@dataclass(frozen=True)
class OperatorTable:
    """What one version takes.

    Args:
        opsets: oldest and newest version of the default operator set.
        operators: operator -> element types of its data; None where it is not supported.
    """

    version: Version
    opsets: tuple[int, int]
    source: str
    operators: dict[str, frozenset[str] | None]


@cache
def _tables() -> tuple[OperatorTable, ...]:
    """All tables, oldest first; each adds to the one before."""
    tables: list[OperatorTable] = []
    for entry in json.loads(_FILE.read_text("utf-8"))["tables"]:
        operators = dict(tables[-1].operators) if tables else {}
        for name, types in entry["operators"].items():
            operators[name] = None if types is None else frozenset(types.split())
        major, minor = map(int, entry["tensorrt"].split("."))
        tables.append(
            OperatorTable((major, minor), tuple(entry["opsets"]), entry["source"], operators)
        )
    return tuple(tables)


def operator_table(version: Version) -> OperatorTable:
    """The table of a version of TensorRT: that of the newest documented one that is not newer.

    Raises: UnsupportedOperatorError for versions before 10.0, which the builder does not know.
    """
    fitting = [table for table in _tables() if table.version <= version]
    if not fitting:
        raise UnsupportedOperatorError(
            f"TensorRT {version[0]}.{version[1]} is older than 10.0, the oldest that engines are "
            "built for. Install TensorRT 10 or 11."
        )
    return fitting[-1]


def check_operators(
    model: ModelProto, name: str, versions: Sequence[Version] = SUPPORTED_VERSIONS
) -> None:
    """Raise where TensorRT of one of these versions would refuse a graph.

    Args:
        model: the graph as TensorRT will get it.
        name: what to call it, its role in the bundle.
    Raises: UnsupportedOperatorError naming every node that is refused, and why.
    """
    view = GraphView(model)
    for version in versions:
        table = operator_table(version)
        refused = _refused(view, table)
        if refused:
            shown = "; ".join(refused[:5]) + (f"; and {len(refused) - 5} more" * (len(refused) > 5))
            raise UnsupportedOperatorError(
                f"TensorRT {version[0]}.{version[1]} does not take graph '{name}': {shown}. "
                "Export the model without these operators, or run it with another backend."
            )


def _refused(view: GraphView, table: OperatorTable) -> list[str]:
    oldest, newest = table.opsets
    found = []
    if not oldest <= view.opset <= newest:
        found.append(f"its opset is {view.opset}, expected {oldest} to {newest}")
    found += [f"output '{v.name}' is also an input" for v in view.graph.output
              if v.name in view.inputs]  # fmt: skip
    for node in view.nodes:
        reason = _reason(view, node, table)
        if reason:
            found.append(f"{label(node)}: {reason}")
    return found


def _reason(view: GraphView, node: NodeProto, table: OperatorTable) -> str | None:
    if node.domain not in DEFAULT_DOMAINS:
        return f"it belongs to domain '{node.domain}'"
    types = table.operators.get(node.op_type)
    if types is None:
        return "the operator is not supported"
    index = _DATA_INPUT.get(node.op_type, 0)
    data = node.input[index] if len(node.input) > index else node.output[0]
    element = view.element_type(data)
    if element and _ELEMENTS.get(element) not in types:
        name = TensorProto.DataType.Name(element).lower()
        return f"its data is {name}, expected one of {', '.join(sorted(types))}"
    restriction = RESTRICTIONS.get(node.op_type)
    return restriction(view, node, table.version) if restriction else None
