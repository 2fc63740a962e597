"""The generated table of rules: complete, and the page in docs/ is what it would be today."""

from __future__ import annotations

from pathlib import Path

from unblemish.export.gradient import table
from unblemish.export.gradient.engine import differentiate
from unblemish.export.gradient.rule import RULES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "gradient-rules.md"


def test_page_is_up_to_date() -> None:
    assert callable(differentiate)  # the engine registers the rules
    expected = table.table()
    found = PAGE.read_text("utf-8")
    assert found == expected, (
        "run: python -m unblemish.export.gradient.table > docs/gradient-rules.md"
    )


def test_every_rule_was_compared_with_torch_and_with_differences() -> None:
    counts = table.recorded()
    assert set(counts) == set(RULES), "run: python benchmarks/gradient_checks.py"
    lacking = {
        op
        for op, found in counts.items()
        if not found.get("torch") or not (found.get("differences") or found.get("nodes"))
    }
    assert not lacking


def test_limits_name_operators_with_rules() -> None:
    assert set(table.LIMITS) <= set(RULES)
    assert not set(table.ALIASES) & set(RULES)
