"""`unblemish demo`: inspect the sample parts that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("unblemish-demo"),
    json_lines: Annotated[
        bool, typer.Option("--json", help="One JSON object per image on stdout, not the table.")
    ] = False,
) -> None:
    """Inspect eight sample parts with a small shipped bundle. Needs no network, takes seconds.

    The parts are rendered, so that their true defects are known to the pixel. Exit code 0 where
    all of them could be inspected, defective as they are.
    """
    from importlib import resources

    from unblemish.batch.session import BatchOptions
    from unblemish.batch.sources import list_sources
    from unblemish.cli.inspect import ERROR, run_and_tell

    with resources.as_file(resources.files("unblemish").joinpath("demo_data")) as data:
        options = BatchOptions(data / "parts.bundle", out, truth=data / "ground_truth")
        code = run_and_tell(options, list_sources([data / "images"]), json_lines)
    page = out / "report.html"
    typer.echo(f"Look at {page if page.is_file() else out / 'overlays'}", err=True)
    raise typer.Exit(ERROR if code == ERROR else 0)
