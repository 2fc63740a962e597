"""`unblemish profile`: where the time goes, and how far that is from the machine's limits."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from unblemish.cli.choices import BACKEND
from unblemish.cli.profile_options import ProfileOptions


class Baseline(str, Enum):
    """What to compare a step with."""

    TORCH = "torch"


def profile(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What to profile.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    baseline: Annotated[
        Baseline | None, typer.Option(help="Time the same step in torch too, by turns.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to inspect [images the model makes].")
    ] = None,
    backend: Annotated[str, typer.Option(help=f"{BACKEND}.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine [all].")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time for each of the two parts.")] = 5.0,
) -> None:
    """Time every stage and step, and compare with the machine's limits."""
    import json

    from unblemish.bundle import Bundle
    from unblemish.cli import (
        profile_autoencoder,
        profile_detector,
        profile_device,
        profile_generator,
    )

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    of = profile_generator if manifest.energy is None else profile_autoencoder
    of = of if manifest.detector is None else profile_detector
    compared = None if baseline is None else baseline.value
    options = ProfileOptions(backend, threads, compared, images, seconds)
    reads = of.reads(opened, options)
    device = profile_device.measure(opened, options, reads)
    result = of.measure(opened, options, reads)
    if device is not None:
        result = profile_device.joined(result, device)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    typer.echo(of.text(result))
    if device is not None:
        typer.echo("\n" + profile_device.text(device))
