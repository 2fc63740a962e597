"""`unblemish build-engines`: TensorRT engines of a bundle, on the device that will run them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unblemish.bundle import Bundle


def build_engines(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; the engines are added to it.")],
    batch: Annotated[int, typer.Option(min=1, help="Most items at once.")] = 64,
    usual_batch: Annotated[int, typer.Option(min=1, help="What the engines are tuned for.")] = 4,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="HEIGHTxWIDTH of images, of detectors; may be repeated [the bundle's own, and "
            "those of the crops that F2PAD searches]."
        ),
    ] = None,
    workspace: Annotated[
        int, typer.Option(min=1, help="MiB of scratch memory for a layer.")
    ] = 1024,
    level: Annotated[
        int, typer.Option(min=0, max=5, help="How long TensorRT searches: 0 quick, 5 all it can.")
    ] = 3,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let convolutions round float32 to 10 bits.")
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Later TensorRT of the same major loads them."),
    ] = False,
    hardware: Annotated[
        str, typer.Option(help="Other chips that run them: none, ampere+ or same-capability.")
    ] = "none",
    refit: Annotated[
        bool, typer.Option("--refit", help="Weights may be replaced by equal ones.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Build also what is there.")] = False,
) -> None:
    """Build TensorRT engines here, check them against ONNX Runtime, and add them to a bundle.

    Takes minutes. Engines belong to this TensorRT, this chip and this system; those of other
    devices stay in the bundle.
    """
    from unblemish.bundle import Bundle
    from unblemish.export.engines.options import EngineOptions

    settings: dict[str, Any] = {  # checked by EngineOptions
        "batch": batch, "usual_batch": min(usual_batch, batch),
        "sizes": tuple(map(_size, size or ())), "workspace": workspace << 20, "level": level,
        "tf32": tf32,
        "version_compatible": version_compatible, "hardware": hardware, "refit": refit,
        "again": again,
    }  # fmt: skip
    options = EngineOptions(**settings)
    opened = Bundle.open(bundle)
    _need_onnx()
    from unblemish.export.engines.bundle_engines import build_engines as run

    made = run(opened, options, say=typer.echo)
    typer.echo(f"{made.path}: {len(made.manifest.engines)} engines")


def build_or_say(bundle: Bundle) -> None:
    """Build engines with default settings where TensorRT and a GPU are; else say how to."""
    from unblemish.errors import BackendError, MissingDependencyError

    try:
        from unblemish.export.engines.bundle_engines import build_engines as run

        run(bundle, say=typer.echo)
    except (BackendError, MissingDependencyError) as error:
        typer.echo(f"note: no engines yet: {error}", err=True)
        typer.echo(f"on the device: unblemish build-engines {bundle.path}")


def _need_onnx() -> None:
    from unblemish.errors import MissingDependencyError

    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("onnx", "tensorrt", "building engines") from error


def _size(text: str) -> tuple[int, int]:
    """Height and width around an x. Raises: ConfigError where they are no such numbers."""
    from unblemish.errors import ConfigError

    parts = text.replace(",", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(f"--size takes HEIGHTxWIDTH, such as 224x224; found '{text}'.")
    return int(parts[0]), int(parts[1])
