"""`unblemish fit`: a detector from normal images and the weights of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unblemish.calibration.features.fit import FitReport
    from unblemish.calibration.features.fitter import Advance


def fit(
    method: Annotated[str, typer.Argument(help="patchcore, padim or cflow.")],
    normals: Annotated[Path, typer.Option(help="Folder of normal images, at any depth.")],
    weights: Annotated[
        Path,
        typer.Option(
            help="ImageNet weights as torchvision has them (.pth, .safetensors), or any .onnx."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Bundle to write, a folder such as part.bundle.")],
    name: Annotated[str | None, typer.Option(help="Name of the bundle [that of --out].")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="resnet18, ..., efficientnet_b6 [recognised].")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, e.g. layer2,layer3 [the method's own]. Of an .onnx: outputs or "
            "inner tensors [all outputs]."
        ),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="onnx: it takes (image - mean) / std [ImageNet's; grey: 0].")
    ] = None,
    std: Annotated[str | None, typer.Option(help="onnx: see --mean [ImageNet's; grey: 1].")] = None,
    size: Annotated[int, typer.Option(help="Model image side in pixels, a multiple of 32.")] = 224,
    channels: Annotated[
        int | None, typer.Option(help="1 (grey) or 3 (colour) [as the first image].")
    ] = None,
    geometry: Annotated[
        str, typer.Option(help="Frame to model image: stretch, letterbox or tiles.")
    ] = "stretch",
    scale: Annotated[float, typer.Option(help="tiles: model pixels per native pixel.")] = 1.0,
    overlap: Annotated[float, typer.Option(help="tiles: share of a tile's side.")] = 0.25,
    white: Annotated[
        float | None,
        typer.Option(help="Intensity of white, e.g. 4095 for 12 bits in 16 [255, 65535 or 1]."),
    ] = None,
    selected: Annotated[
        int | None, typer.Option(help="padim: feature channels drawn at random, 0 for all [100].")
    ] = None,
    shrinkage: Annotated[str, typer.Option(help="padim: ledoit-wolf or epsilon.")] = "epsilon",
    epsilon: Annotated[float, typer.Option(help="padim: variance added by epsilon.")] = 0.01,
    rank: Annotated[
        int | None, typer.Option(help="padim: directions kept per place [the full covariance].")
    ] = None,
    pool: Annotated[
        int,
        typer.Option(
            help="patchcore: side of the mean over neighbouring cells. The published 3 outlines "
            "defects of several cells better, and misses small ones."
        ),
    ] = 0,
    share: Annotated[
        float | None,
        typer.Option(help="patchcore: share of the features kept [0.01, and 2,000 or more]."),
    ] = None,
    bank: Annotated[
        int | None, typer.Option(help="patchcore: most features kept [20,000].")
    ] = None,
    blocks: Annotated[int, typer.Option(help="cflow: couplings of a flow.")] = 8,
    steps: Annotated[int, typer.Option(help="cflow: training steps for every map.")] = 800,
    learning_rate: Annotated[float, typer.Option(help="cflow: largest learning rate.")] = 1e-3,
    noise: Annotated[
        float, typer.Option(help="cflow: noise while training, in deviations of the features.")
    ] = 0.5,
    minutes: Annotated[
        float | None, typer.Option(help="cflow: training ends within them [all steps].")
    ] = None,
    inpainter: Annotated[
        Path | None,
        typer.Option(
            help="ONNX network that fills holes, such as a masked autoencoder, for F2PAD's start: "
            "'image' and 'mask' in, image out [classical inpainting]."
        ),
    ] = None,
    most: Annotated[
        int | None, typer.Option(help="Most normal images to use, drawn at random [all].")
    ] = None,
    held_back: Annotated[
        float, typer.Option(help="Share of the images kept out, to calibrate on.")
    ] = 0.0,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Fit so many times more, without one part of the images each, so that calibration "
            "can use the images fitted; 0 for never. cflow trains anew for each, within --minutes "
            "each [4 for up to 64 images of which none is held back, 1 image each for up to 7]."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes all random choices.")] = 0,
    memory: Annotated[float, typer.Option(help="GB to hold while fitting.")] = 2.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine.")] = None,
) -> None:
    """Fit PatchCore, PaDiM (seconds) or CFLOW-AD (minutes): sixteen normal images are enough."""
    from unblemish.calibration.features.fit import fit as run
    from unblemish.calibration.features.options import FitOptions

    named = None if layers is None else tuple(n.strip() for n in layers.split(",") if n.strip())
    typed: dict[str, Any] = {  # checked by FitOptions
        "method": method, "size": size, "channels": channels, "backbone": backbone,
        "layers": named, "mean": _numbers("mean", mean), "std": _numbers("std", std),
        "selected": selected, "geometry": geometry, "scale": scale, "overlap": overlap,
        "white": white, "shrinkage": shrinkage, "epsilon": epsilon, "rank": rank, "pool": pool,
        "share": share, "bank": bank, "blocks": blocks, "steps": steps, "rate": learning_rate,
        "noise": noise, "minutes": minutes, "most": most,
        "held_back": held_back, "folds": folds, "seed": seed, "memory": int(memory * (1 << 30)),
        "threads": threads,
    }  # fmt: skip
    options = FitOptions(**typed)
    with _progress_bar() as advance:
        report = run(
            options, normals, weights, out, name=name, inpainter=inpainter, advance=advance
        )
    _tell(report, options.held_back, options.seed, normals)


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers between commas. Raises: ConfigError where one is none."""
    from unblemish.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--{name} takes numbers between commas, such as 0.485,0.456,0.406; found '{text}'."
        ) from None


def _tell(report: FitReport, held_back: float, seed: int, normals: Path) -> None:
    m, images = report.bundle.manifest, report.images
    assert m.detector is not None
    p, d = m.preprocess, m.detector
    total = sum(record.bytes for record in m.files.values()) / 1e6
    typer.echo(
        f"{report.bundle.path}: {m.method} on {d.backbone} {'+'.join(d.layers)}, "
        f"{d.normals} normal images of {p.width}x{p.height}x{p.channels}, {p.geometry}; "
        f"{total:.1f} MB in {sum(report.seconds.values()):.0f} s"
    )
    for what, value in report.facts:
        typer.echo(f"{what}: {value}")
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    for _, reason in images.rejected:
        typer.echo(f"set aside: {reason}", err=True)
    if held_back:
        rest = f"--normals {normals} --share {held_back:g} --seed {seed}"
    elif d.crossed is not None:
        rest = f"--normals {normals}"
    else:
        rest = "--normals DIR   (normal images that were not fitted)"
    typer.echo(f"next: unblemish calibrate {report.bundle.path} {rest}")


@contextmanager
def _progress_bar() -> Iterator[Advance]:
    """A bar per stage on a terminal; elsewhere one line per stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
                if not console.is_terminal:
                    console.print(f"{stage} ...")
            bars.update(tasks[stage], completed=done, total=total)

        yield advance
