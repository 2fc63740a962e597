"""`unblemish export --precision`: a bundle in another precision, measured against float32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unblemish.errors import ConfigError

if TYPE_CHECKING:
    from unblemish.bundle import Bundle


def require_normals(precision: str, normals: Path | None) -> None:
    """Raise ConfigError for an unknown precision, or where one has nothing to be measured on."""
    from unblemish.bundle.manifest import PRECISIONS

    if precision not in PRECISIONS:
        raise ConfigError(f"--precision must be one of {', '.join(PRECISIONS)}; got '{precision}'.")
    if precision != "fp32" and normals is None:
        raise ConfigError(
            f"--precision {precision} is held against float32 on normal images, and int8 takes its "
            "ranges from them. Give a folder with --normals DIR."
        )


def convert_bundle(
    source: Path, out: Path, precision: str, normals: Path | None, *, biases: bool = True
) -> Bundle:
    """Convert a bundle that exists, and say what the precision costs; `biases`: int8 has theirs."""
    from unblemish.bundle import Bundle

    if precision == "fp32" or normals is None:
        raise ConfigError(
            f"{source} is a folder: give a checkpoint or .onnx file, or a bundle together with "
            "--precision fp16, bf16 or int8 and --normals DIR."
        )
    made = _converted(Bundle.open(source), out, precision, normals, biases)
    typer.echo(f"wrote {made.path}")
    return made


def in_precision(
    write: Callable[[Path], Bundle],
    out: Path,
    precision: str,
    normals: Path | None,
    *,
    biases: bool = True,
) -> Bundle:
    """Write a bundle by `write`, or make it beside and convert it to `out`."""
    if precision == "fp32" or normals is None:
        return write(out)
    with tempfile.TemporaryDirectory(prefix="unblemish-", ignore_cleanup_errors=True) as folder:
        return _converted(write(Path(folder) / out.name), out, precision, normals, biases)


def _converted(bundle: Bundle, out: Path, precision: str, normals: Path, biases: bool) -> Bundle:
    from unblemish.calibration.precision.convert import convert_precision

    made = convert_precision(bundle, precision, normals, out, biases=biases, say=typer.echo)
    typer.echo(f"{precision} against float32: {made.drift.text()}")
    return made.bundle
