"""`unblemish demo`: inspect the sample parts that come with the package."""

from __future__ import annotations

from pathlib import Path

import typer

from unblemish.cli.choices import JsonLines, Out

_GOOD = "good"


def demo(
    out: Out = Path("unblemish-demo"),
    json_lines: JsonLines = False,
) -> None:
    """Inspect eight sample parts with a small shipped bundle.

    Needs no network and takes seconds. The parts are rendered, so that their true defects are known
    to the pixel. Exit code 0 where all of them could be inspected, defective as they are.
    """
    from importlib import resources

    from unblemish.batch.album import sheet
    from unblemish.batch.session import BatchOptions
    from unblemish.batch.sources import list_sources
    from unblemish.cli.inspect import ERROR, run_and_tell
    from unblemish.images import write_image

    with resources.as_file(resources.files("unblemish").joinpath("demo_data")) as data:
        options = BatchOptions(data / "parts.bundle", out, truth=data / "ground_truth")
        outcome = run_and_tell(options, list_sources([data / "images"]), json_lines)
    shown = [rows[0] for kind, rows in outcome.entries.items() if kind != _GOOD]
    if shown:
        write_image(out / "demo.png", sheet(shown))
    typer.echo(f"Look at {outcome.report or out / 'demo.png'}", err=True)
    raise typer.Exit(ERROR if outcome.errors else 0)
