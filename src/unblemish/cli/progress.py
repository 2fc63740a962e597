"""Progress on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from time import monotonic

Advance = Callable[[str], None]
_LINE_EVERY_S = 10.0


@contextlib.contextmanager
def progress(total: int | None, unit: str, *, quiet: bool = False) -> Iterator[Advance]:
    """Show how far the work is; the function given is called with a word after each unit.

    Args:
        total: number of units, None where unknown.
        quiet: show nothing, e.g. because lines of results scroll by on the same terminal.
    """
    if quiet:
        yield lambda word: None
    elif sys.stderr.isatty():
        with _bar(total, unit) as advance:
            yield advance
    else:
        yield _lines(total, unit)


@contextlib.contextmanager
def _bar(total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda word: bar.update(task, advance=1, description=word)


def _lines(total: int | None, unit: str) -> Advance:
    done, last = 0, monotonic()

    def advance(word: str) -> None:
        nonlocal done, last
        done += 1
        if monotonic() - last >= _LINE_EVERY_S:
            last = monotonic()
            of = "" if total is None else f" of {total}"
            print(f"{done}{of} {unit}", file=sys.stderr, flush=True)

    return advance
