"""Run the tests of the gradient rules and record, per operator, what they checked.

    python benchmarks/gradient_checks.py

Writes `export/gradient/checks.json` (counts of models compared with torch, with central
differences, and of the standard's node tests) if every test passes. Takes some minutes.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "export" / "gradient" / "checks.json"
LARGEST = 4
"""Nodes up to which a model counts as a test of its operators rather than of their composition."""


class Recorder:
    """A pytest plugin: counts what the harness compares, and reads the node tests' records."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """Count the calls of `check_gradients`, and of `check`, which adds its own differences."""
        value = yield
        if fixturedef.argname == "check_gradients":
            value = self._counting(value, own_differences=False)
        elif fixturedef.argname == "check":
            value = self._counting(value, own_differences=True)
        else:
            return value
        fixturedef.cached_result = (value, *fixturedef.cached_result[1:])
        return value

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Read the outcomes of the node tests: the complete run, not the fast sample of it."""
        found = dict(report.user_properties)
        if report.when == "call" and "test_all_node_tests" in report.nodeid:
            operator, outcomes = found["operator"], found["outcomes"]
            self.counts[operator]["nodes"] = outcomes.get("checked", 0)
            self.counts[operator]["node_cases"] = sum(outcomes.values())

    def _counting(self, check: Any, *, own_differences: bool) -> Any:
        def counted(model: Any, function: Any = None, **settings: Any) -> Any:
            result = check(model, function, **settings)
            operators = _operators(model)
            for op in operators:
                if own_differences or settings.get("differences", True):
                    self.counts[op]["differences"] += 1
                if function is not None and not own_differences:
                    self.counts[op]["torch"] += 1
            return result

        return counted


def _operators(model: str | onnx.ModelProto) -> set[str]:
    proto = parser.parse_model(model) if isinstance(model, str) else model
    nodes = proto.graph.node
    return {node.op_type for node in nodes} if len(nodes) <= LARGEST else set()


def main() -> int:
    """Run, and write the counts of the operators that have a rule."""
    recorder = Recorder()
    tests = ROOT / "tests" / "export" / "gradient"
    # The table's own tests compare it with the record that is being made.
    apart = ["--ignore", str(tests / "test_table.py")]
    status = pytest.main(["-q", "-p", "no:cacheprovider", str(tests), *apart], plugins=[recorder])
    if status:
        print("tests failed: the record is left as it was", file=sys.stderr)
        return int(status)
    from unblemish.export.gradient.rule import RULES

    kept = {op: dict(sorted(recorder.counts[op].items())) for op in sorted(RULES)}
    TARGET.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
