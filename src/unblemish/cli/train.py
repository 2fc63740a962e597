"""`unblemish train`: a generator or autoencoder from a folder of normal images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unblemish.calibration.training.loop import Progress
    from unblemish.calibration.training.run import TrainingReport

STOPPED = 130


def train(
    normals: Annotated[Path, typer.Option(help="Folder of normal images, at any depth.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write (.pt).")],
    model: Annotated[
        str,
        typer.Option(
            help="Generators, for RGI: vae (minutes on a CPU), pca (seconds) or pggan (wants a "
            "GPU). Autoencoders, for the energy projection (minutes on a CPU): l2ae, dsae, ae-vae "
            "(the plain VAE on the same network) or gamma-vae (with learned decoder variance)."
        ),
    ] = "vae",
    size: Annotated[
        int,
        typer.Option(
            help="Model image side in pixels, a power of two; of autoencoders a multiple of 16."
        ),
    ] = 128,
    steps: Annotated[int | None, typer.Option(help="Updates to make.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Training time in all [10 where --steps is not given].")
    ] = None,
    latent: Annotated[
        int | None,
        typer.Option(help="Length of the latent vector [vae and pca 256, pggan 512, others 100]."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="vae: feature maps at full size; pggan: base of the table; autoencoders: feature "
            "maps of the first layer."
        ),
    ] = None,
    beta: Annotated[
        float, typer.Option(help="VAEs: weight of the prior; 0 trains a plain autoencoder.")
    ] = 1.0,
    variance: Annotated[
        str, typer.Option(help="gamma-vae: one learned scale for all (global) or each (pixel).")
    ] = "global",
    network: Annotated[
        str,
        typer.Option(
            help="Autoencoders: conv, the published one, or resnet, with residual blocks, for "
            "faces and other colour images."
        ),
    ] = "conv",
    linear: Annotated[
        bool,
        typer.Option(
            help="Autoencoders: begin from PCA in closed form and learn what it leaves; without "
            "it the network is the published one, and learns far slower."
        ),
    ] = True,
    patience: Annotated[
        int | None,
        typer.Option(
            help="End where the held-back loss did not improve for so many checks, 50 updates "
            "apart, and keep the best weights; 0 never [autoencoders 20, others 0]."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per update.")] = 16,
    lr: Annotated[float | None, typer.Option(help="Step size [0.001].")] = None,
    channels: Annotated[
        int | None, typer.Option(help="1 (grey) or 3 (colour) [as the first image].")
    ] = None,
    geometry: Annotated[
        str,
        typer.Option(
            help="Frame to model image: stretch, letterbox or tiles (textures: random crops)."
        ),
    ] = "stretch",
    scale: Annotated[float, typer.Option(help="tiles: model pixels per native pixel.")] = 1.0,
    white: Annotated[
        float | None,
        typer.Option(help="Intensity of white, e.g. 4095 for 12 bits in 16 [255, 65535 or 1]."),
    ] = None,
    augment: Annotated[
        str,
        typer.Option(
            help="What normal parts may vary in, comma-separated out of shift, rotate, "
            "brightness, hflip, vflip; or none."
        ),
    ] = "shift,brightness",
    held_back: Annotated[
        float, typer.Option(help="Share of the images kept out for the reconstruction figure.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Fixes all random choices.")] = 0,
    precision: Annotated[str, typer.Option(help="auto (measured), float32 or bfloat16.")] = "auto",
    checkpoint_seconds: Annotated[float, typer.Option(help="Time between checkpoints.")] = 120.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
) -> None:
    """Train a model on normal images. Ctrl-C saves and stops; --resume goes on."""
    from unblemish.calibration.training import TrainOptions
    from unblemish.calibration.training.imports import require_training

    names = tuple(n.strip() for n in augment.split(",") if n.strip() not in ("", "none"))
    typed: dict[str, Any] = {  # checked by TrainOptions
        "model": model, "size": size, "channels": channels, "latent": latent, "width": width,
        "beta": beta, "variance": variance, "network": network, "linear": linear,
        "patience": patience,
        "steps": steps, "batch": batch, "lr": lr, "geometry": geometry,
        "minutes": minutes, "scale": scale,
        "augment": names, "held_back": held_back, "seed": seed, "precision": precision,
        "checkpoint_seconds": checkpoint_seconds, "white": white,
    }  # fmt: skip
    if steps is None and minutes is None:
        typed.update({"steps": 1} if model == "pca" else {"minutes": 10.0})
    checked = TrainOptions(**typed)
    require_training()
    from unblemish.calibration.training.run import train as run_training

    with _progress_bar() as (opened, report):
        outcome = run_training(
            normals, out, checked, resume=resume, overwrite=overwrite, opened=opened, report=report
        )
    _tell(outcome)
    if outcome.stopped_by is not None:
        raise typer.Exit(STOPPED)


@contextmanager
def _progress_bar() -> Iterator[tuple[Any, Any]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[state]}"),
    )  # fmt: skip
    with Bar(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task("training", total=1.0, state="starting")

        def opened(normals: Any) -> None:
            p = normals.preprocess
            console.print(
                f"{len(normals.train)} images to train on, {len(normals.held_back)} held back, "
                f"{len(normals.broken)} skipped; {p.width}x{p.height}x{p.channels}, {p.geometry}"
            )
            for path, why in list(normals.broken.items())[:5]:
                console.print(f"  skipped {path.name}: {why}", markup=False)

        def report(progress: Progress) -> None:
            left = f"{int(progress.left // 60)}:{int(progress.left % 60):02d} left"
            state = f"step {progress.step}, loss {progress.loss:.4f}, {left}"
            bar.update(task, completed=progress.share, state=state)

        yield opened, report


def _tell(outcome: TrainingReport) -> None:
    figures = ", ".join(
        f"{name} {value:.5g}"
        for name, value in outcome.figures.items()
        if name not in ("steps", "seconds")
    )
    typer.echo(f"{outcome.checkpoint}: {outcome.steps} steps in {outcome.seconds:.0f} s, {figures}")
    typer.echo(f"{outcome.grid}: images, reconstructions, samples")
    if outcome.settled is not None:
        typer.echo(f"settled: nothing was better than step {outcome.settled}, which is kept")
    if outcome.broken:
        typer.echo(f"{len(outcome.broken)} files could not be read and were skipped")
    if outcome.stopped_by is not None:
        typer.echo(f"stopped by {outcome.stopped_by}; go on with the same command and --resume")
