"""Condense TensorRT's published signatures to what the double checks calls against.

python tests/tensorrt_double/condense.py TYPINGS10/tensorrt/__init__.pyi TYPINGS11/...
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "signatures.json"
CLASSES = frozenset({
    "Builder", "BuilderFlag", "DataType", "Dims", "ErrorCodeTRT",
    "ExecutionContextAllocationStrategy", "HardwareCompatibilityLevel",
    "IBuilderConfig", "ICudaEngine", "IErrorRecorder", "IExecutionContext", "IHostMemory",
    "ILogger", "INetworkDefinition", "IOptimizationProfile", "ITensor", "ITimingCache",
    "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError", "Runtime",
    "TensorIOMode", "TensorLocation",
})  # fmt: skip
_LAYERS = "add_"  # of a network: nothing of ours adds layers by hand


def condense(text: str) -> dict[str, Any]:
    """Class -> methods (name -> signatures), attributes, those that may be set, members."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name in CLASSES:
            found[node.name] = _class(node)
    return dict(sorted(found.items()))


def _class(node: ast.ClassDef) -> dict[str, Any]:
    methods: dict[str, list[list[Any]]] = {}
    readable, writable, members = set(), set(), set()
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            name = item.target.id
            if "ClassVar" in ast.unparse(item.annotation):
                members.add(name)
            else:
                readable.add(name)
                writable.add(name)
        elif isinstance(item, ast.FunctionDef):
            marks = [ast.unparse(d) for d in item.decorator_list]
            if any(m.endswith(".setter") for m in marks):
                writable.add(item.name)
            elif "property" in marks:
                readable.add(item.name)
            elif not _left_out(node.name, item.name):
                methods.setdefault(item.name, []).append(_signature(item))
    parts = {
        "methods": dict(sorted(methods.items())), "attributes": sorted(readable),
        "writable": sorted(writable), "members": sorted(members - {"__members__"}),
    }  # fmt: skip
    return {key: value for key, value in parts.items() if value}


def _left_out(owner: str, name: str) -> bool:
    special = name.startswith("__") and name != "__init__"
    return special or (owner == "INetworkDefinition" and name.startswith(_LAYERS))


def _signature(item: ast.FunctionDef) -> list[Any]:
    """[[name, type, required], ...] without self."""
    arguments = item.args.args[1:]
    required = len(arguments) - len(item.args.defaults)
    return [
        [a.arg, "" if a.annotation is None else ast.unparse(a.annotation), i < required]
        for i, a in enumerate(arguments)
    ]


def as_text(versions: dict[str, Any]) -> str:
    """The file, a class a line."""
    blocks = []
    for version, classes in versions.items():
        lines = [f"  {json.dumps(n)}: {json.dumps(c)}" for n, c in classes.items()]
        blocks.append(f' "{version}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    texts = {v: Path(p).read_text("utf-8") for v, p in zip(("10", "11"), sys.argv[1:], strict=True)}
    FILE.write_text(as_text({v: condense(t) for v, t in texts.items()}), "utf-8")
