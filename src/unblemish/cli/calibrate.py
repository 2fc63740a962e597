"""`unblemish calibrate`: lambda and thresholds from normal images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unblemish.cli.choices import Schedule

if TYPE_CHECKING:
    from unblemish.calibration.calibrate import Progress
    from unblemish.calibration.result import CalibrationResult


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle to calibrate; its settings are replaced.")],
    normals: Annotated[
        Path,
        typer.Option(
            help="Folder of normal images that the model was not trained on, or that a detector "
            "was fitted on with --folds."
        ),
    ],
    false_reject: Annotated[
        float, typer.Option(help="Share of normal parts that may be rejected.")
    ] = 0.001,
    images: Annotated[
        int, typer.Option(help="Synthetic defects to choose lambda and the mask by.")
    ] = 48,
    share: Annotated[
        float,
        typer.Option(
            help="Share of the folder to use. With the training folder, the --held-back and the "
            "--seed of training, these are the images kept out of it."
        ),
    ] = 1.0,
    most: Annotated[int | None, typer.Option(help="Most normal images to use [all].")] = None,
    polarity: Annotated[
        str | None,
        typer.Option(
            help="dark or bright where every defect is darker, or brighter, than the part; both "
            "otherwise [the bundle's]."
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(help="The search to calibrate for, as in `inspect` [the bundle's]."),
    ] = None,
    schedule: Annotated[
        Schedule, typer.Option(help="The steps to calibrate for; paper takes hours on a CPU.")
    ] = Schedule.FAST,
    white: Annotated[
        float | None, typer.Option(help="Intensity of white; the bundle keeps it [its own].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes all random choices.")] = 0,
    backend: Annotated[
        str, typer.Option(help="onnxruntime, openvino, torch or tensorrt.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine.")] = None,
) -> None:
    """Choose lambda, thresholds and mask cleaning from normal images and defects pasted on them.

    The bundle is changed at the very end, in one step. A report is written beside it:
    NAME.calibration.html.
    """
    from unblemish.bundle import Bundle
    from unblemish.calibration.calibrate import calibrate as run
    from unblemish.runtime.inspector import Inspector

    opened = Bundle.open(bundle)
    if polarity is not None:
        opened = opened.with_rgi(polarity=polarity)
    inspector = Inspector.open(
        opened, backend=backend, threads=threads, white=white, refine=refine,
        schedule=schedule.value,
    )  # fmt: skip
    with inspector, _progress_bar() as progress:
        result = run(
            opened,
            normals,
            false_reject=false_reject,
            seed=seed,
            images=images,
            share=share,
            most=most,
            white=white,
            searcher=inspector,
            progress=progress,
        )
    _print(result)
    _write_report(result)


def _print(result: CalibrationResult) -> None:
    from unblemish.calibration.report import chosen_rows, rate_note, weakness_note
    from unblemish.cli.table import format_table

    rows = chosen_rows(result)
    typer.echo(format_table(("setting", "value", "why"), rows, left=3))
    typer.echo(f"\n{rate_note(result)}")
    if result.seen.note is not None:
        typer.echo(result.seen.note)
    for warning in (result.seen.warning, weakness_note(result)):
        if warning is not None:
            typer.echo(f"warning: {warning}", err=True)
    for _, reason in result.normals.rejected:
        typer.echo(f"set aside: {reason}", err=True)


def _write_report(result: CalibrationResult) -> None:
    from unblemish.report.page import report_available

    if not report_available():
        typer.echo("no report: pip install 'unblemish[report]' brings what it needs.", err=True)
        return
    from unblemish.calibration.report import calibration_page, report_path
    from unblemish.files import write_atomic

    path = report_path(result.bundle.path)
    write_atomic(path, calibration_page(result))
    typer.echo(f"report: {path}")


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """A bar per stage on a terminal; elsewhere one line per stage."""
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:>18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("searches"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def advance(stage: str, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
                if not console.is_terminal:
                    of = "" if total is None else f": {total} searches"
                    print(f"{stage}{of}", file=sys.stderr, flush=True)
            bars.update(tasks[stage], advance=1)

        yield advance
