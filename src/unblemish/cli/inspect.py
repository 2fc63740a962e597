"""`unblemish inspect`: masks, measures and verdicts for images, folders and videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unblemish.cli.choices import (
    Backend,
    Deadline,
    Files,
    JsonLines,
    MaxSteps,
    Out,
    Refine,
    Schedule,
    Threads,
    White,
)

if TYPE_CHECKING:
    from unblemish.batch.records import Record
    from unblemish.batch.session import BatchOptions, Outcome
    from unblemish.batch.sources import Source

CLEAN, DEFECTS, ERROR = 0, 1, 2


def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What to inspect with.")],
    files: Files,
    out: Out,
    json_lines: JsonLines = False,
    deadline_ms: Deadline = None,
    refine: Annotated[
        Refine | None,
        typer.Option(
            help="rgi; rrgi, weights free at the end; none, the first pass alone; l2 and l1, "
            "searches without a mask; anogan, with the discriminator's features. Detectors: f2pad, "
            "initial or none. Autoencoders: energy, none, latent, or a map of one pass: error, "
            "gradient, gradient-error, kl, kl-error [as calibrated, else the first]."
        ),
    ] = None,
    schedule: Annotated[
        Schedule, typer.Option(help="fast, or paper: as published, 2,000 steps.")
    ] = Schedule.FAST,
    max_steps: MaxSteps = None,
    backend: Backend = None,
    threads: Threads = None,
    white: White = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="Truth masks <defect>/<name>_mask.png; writes metrics.json."),
    ] = None,
) -> None:
    """Inspect images: masks, measured defects and a verdict for each.

    Exit code 0: all clean. 1: defects found. 2: an error, be it of a single image (the others are
    inspected all the same).

    Written to --out: overlays/, masks/ and restored/ at the size of the images, results.jsonl
    (one object per image) and report.html. The folder of an image is its category, as in --truth;
    'good' is normal.
    """
    from unblemish.batch.session import BatchOptions
    from unblemish.batch.sources import list_sources

    asked = {
        "refine": refine.value if refine else None,
        "schedule": schedule.value,
        "max_steps": max_steps,
        "backend": backend,
        "threads": threads,
        "white": white,
    }
    settings = {name: value for name, value in asked.items() if value is not None}
    options = BatchOptions(bundle, out, deadline_ms, truth, settings)
    outcome = run_and_tell(options, list_sources(files, leave_out=out), json_lines)
    raise typer.Exit(ERROR if outcome.errors else DEFECTS if outcome.defective else CLEAN)


def run_and_tell(options: BatchOptions, sources: list[Source], json_lines: bool) -> Outcome:
    """Run a batch, and print its records or table."""
    import sys

    from unblemish.batch.records import to_json
    from unblemish.batch.session import run_batch
    from unblemish.cli.progress import progress

    scrolling = json_lines and sys.stdout.isatty()
    total = None if any(_is_video(source) for source in sources) else len(sources)
    with progress(total, "images", quiet=scrolling) as advance:

        def listen(record: Record) -> None:
            if json_lines:
                print(to_json(record), flush=True)
            advance(record["name"])

        outcome = run_batch(options, sources, listen)
    if not json_lines:
        typer.echo(_table(outcome))
    _tell(outcome, options.out)
    return outcome


def _table(outcome: Outcome) -> str:
    from unblemish.cli.table import format_table

    columns = ("image", "verdict", "score", "regions", "largest", "area", "status", "steps", "ms")
    return format_table(columns, [_row(record) for record in outcome.records], left=2)


def _row(record: Record) -> tuple[str, ...]:
    if "error" in record:
        return (record["name"], "error", *("",) * 7)
    score = record["image_score"]
    return (
        record["name"],
        record["verdict"],
        "–" if score is None else f"{score:.4g}",
        str(len(record["regions"])),
        _largest(record["regions"]),
        str(record["defect_area"]),
        record["status"],
        str(record["steps"]),
        f"{record['latency_ms']:.0f}",
    )


def _largest(regions: list[dict[str, Any]]) -> str:
    if not regions:
        return ""
    first = regions[0]
    if first["length_mm"] is not None:
        return f"{first['length_mm']:.2f} x {first['width_mm']:.2f} mm"
    return f"{first['length']:.0f} x {first['width']:.0f} px"


def _tell(outcome: Outcome, out: Path) -> None:
    """Say on stderr what went wrong and where things are."""
    for record in outcome.errors:
        typer.echo(f"error: {record['error']}", err=True)
    inspected = len(outcome.records) - len(outcome.errors)
    said = f"{_count(inspected, 'image')} inspected, {len(outcome.defective)} with defects"
    if outcome.errors:
        said += f", {_count(len(outcome.errors), 'error')}"
    kept = sum(record.get("kept_plain", 0) for record in outcome.records)
    if kept:
        said += f", {_count(kept, 'region')} with the detector's own outline"
    typer.echo(f"{said}; results in {out}", err=True)
    if outcome.report is None:
        typer.echo("no report.html: it needs pip install 'unblemish[report]'", err=True)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _is_video(source: Source) -> bool:
    from unblemish.images import is_video

    return is_video(source.path)
