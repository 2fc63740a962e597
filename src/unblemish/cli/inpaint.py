"""`unblemish inpaint`: what a normal part would show, in known holes or wherever it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unblemish.cli.choices import (
    Backend,
    Deadline,
    Files,
    JsonLines,
    MaxSteps,
    Out,
    Schedule,
    Threads,
    White,
)

if TYPE_CHECKING:
    from unblemish.batch.inpainting import InpaintOptions
    from unblemish.batch.records import Record
    from unblemish.batch.sources import Source

CLEAN, ERROR = 0, 2


def inpaint(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What to fill with.")],
    files: Files,
    out: Out,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder of masks, <folder>/<name>_mask.png or <name>.png: 0 stays, one other "
            "level is filled."
        ),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="One mask for all images.")] = None,
    json_lines: JsonLines = False,
    deadline_ms: Deadline = None,
    schedule: Annotated[
        Schedule, typer.Option(help="fast, or paper: as published.")
    ] = Schedule.FAST,
    max_steps: MaxSteps = None,
    backend: Backend = None,
    threads: Threads = None,
    white: White = None,
) -> None:
    """Fill masked pixels as a normal part would look; without masks, what is found to be foreign.

    With a mask every other pixel stays as it is. Needs the bundle of an autoencoder or generator,
    calibrated or not, or of a detector fitted with an inpainter.

    Exit code 0: done. 2: an error, be it of a single image (the others are filled all the same).

    Written to --out: restored/ at the size and depth of the images, results.jsonl (one object per
    image) and grid.png to look at.
    """
    from unblemish.batch.inpainting import InpaintOptions
    from unblemish.batch.masks import Masks
    from unblemish.batch.sources import list_sources

    asked = {
        "schedule": schedule.value, "max_steps": max_steps, "backend": backend,
        "threads": threads, "white": white,
    }  # fmt: skip
    settings = {name: value for name, value in asked.items() if value is not None}
    options = InpaintOptions(bundle, out, Masks(masks, mask), deadline_ms, settings)
    records = _run(options, list_sources(files, leave_out=out), json_lines)
    raise typer.Exit(ERROR if any("error" in record for record in records) else CLEAN)


def _run(options: InpaintOptions, sources: list[Source], json_lines: bool) -> tuple[Record, ...]:
    """Run the batch, and print its records or table."""
    import sys

    from unblemish.batch.inpainting import run_inpainting
    from unblemish.batch.records import to_json
    from unblemish.cli.progress import progress
    from unblemish.cli.table import format_table
    from unblemish.images import is_video

    total = None if any(is_video(source.path) for source in sources) else len(sources)
    with progress(total, "images", quiet=json_lines and sys.stdout.isatty()) as advance:

        def listen(record: Record) -> None:
            if json_lines:
                print(to_json(record), flush=True)
            advance(record["name"])

        records = run_inpainting(options, sources, listen)
    if not json_lines:
        columns = ("image", "hole", "pixels", "ms")
        typer.echo(format_table(columns, [_row(record) for record in records], left=2))
    _tell(records, options.out)
    return records


def _row(record: Record) -> tuple[str, ...]:
    if "error" in record:
        return (record["name"], "error", "", "")
    how = "blind" if record["blind"] else "mask"
    return (record["name"], how, str(record["hole_area"]), f"{record['latency_ms']:.0f}")


def _tell(records: tuple[Record, ...], out: Path) -> None:
    """Say on stderr what went wrong and where things are."""
    errors = [record["error"] for record in records if "error" in record]
    for error in errors:
        typer.echo(f"error: {error}", err=True)
    done = len(records) - len(errors)
    said = f"{done} image{'' if done == 1 else 's'} filled"
    if errors:
        said += f", {len(errors)} error{'' if len(errors) == 1 else 's'}"
    typer.echo(f"{said}; results in {out}", err=True)
