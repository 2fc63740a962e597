"""`unblemish doctor`: what is installed, what works, what to do about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from unblemish.doctor import Finding, Report

_SIGNS = {"works": "ok", "absent": "--", "broken": "!!"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to say the engine of, by its precision and engines.")
    ] = None,
) -> None:
    """Say what is installed and works, and what to do about the rest.

    Exit code 0 where images can be inspected on this machine, 2 where not.
    """
    import json

    from unblemish.bundle import Bundle
    from unblemish.doctor import examine

    report = examine() if bundle is None else examine(Bundle.open(bundle))
    typer.echo(json.dumps(report.as_json(), indent=2) if as_json else _text(report))
    raise typer.Exit(0 if report.healthy else 2)


def _text(report: Report) -> str:
    lines = [f"{name:12} {value}" for name, value in report.system.items()]
    for group, findings in report.groups.items():
        lines += ["", group]
        width = max((len(finding.part) for finding in findings), default=0)
        for finding in findings:
            lines += _lines(finding, width)
    verdict = "Images can be inspected here." if report.healthy else "Images cannot be inspected."
    return "\n".join([*lines, "", verdict])


def _lines(finding: Finding, width: int) -> list[str]:
    first = f"  {_SIGNS[finding.state]}  {finding.part:{width}}  {finding.detail}".rstrip()
    return [first, f"      -> {finding.advice}"] if finding.advice else [first]
