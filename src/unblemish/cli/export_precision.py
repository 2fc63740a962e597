"""`unblemish export --precision`: a bundle in another precision, measured against float32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unblemish.errors import ConfigError

if TYPE_CHECKING:
    from unblemish.bundle import Bundle


@dataclass(frozen=True)
class Precision:
    """What the command line asks for.

    Args:
        name: fp32, fp16, bf16 or int8. normals: folder of normal images, needed by all but fp32.
        biases, quantiser: of int8, see `quantise`.
    Raises: ConfigError for an unknown name or quantiser, or where one has nothing to be measured
        on.
    """

    name: str
    normals: Path | None
    biases: bool = True
    quantiser: str = "onnxruntime"

    def __post_init__(self) -> None:
        from unblemish.bundle.manifest import PRECISIONS
        from unblemish.export.precision import QUANTISERS

        for option, given, known in (
            ("precision", self.name, PRECISIONS),
            ("quantiser", self.quantiser, QUANTISERS),
        ):
            if given not in known:
                raise ConfigError(f"--{option} must be one of {', '.join(known)}; got '{given}'.")
        if self.quantiser != "onnxruntime" and self.name != "int8":
            raise ConfigError("--quantiser is for --precision int8; leave it out.")
        if self.name != "fp32" and self.normals is None:
            raise ConfigError(
                f"--precision {self.name} is held against float32 on normal images, and int8 takes "
                "its ranges from them. Give a folder with --normals DIR."
            )


def convert_bundle(source: Path, out: Path, precision: Precision) -> Bundle:
    """Convert a bundle that exists, and say what the precision costs."""
    from unblemish.bundle import Bundle

    if precision.name == "fp32":
        raise ConfigError(
            f"{source} is a folder: give a checkpoint or .onnx file, or a bundle together with "
            "--precision fp16, bf16 or int8 and --normals DIR."
        )
    made = _converted(Bundle.open(source), out, precision)
    typer.echo(f"wrote {made.path}")
    return made


def in_precision(write: Callable[[Path], Bundle], out: Path, precision: Precision) -> Bundle:
    """Write a bundle by `write`, or make it beside and convert it to `out`."""
    if precision.name == "fp32":
        return write(out)
    with tempfile.TemporaryDirectory(prefix="unblemish-", ignore_cleanup_errors=True) as folder:
        return _converted(write(Path(folder) / out.name), out, precision)


def _converted(bundle: Bundle, out: Path, precision: Precision) -> Bundle:
    from unblemish.calibration.precision.convert import convert_precision

    assert precision.normals is not None
    made = convert_precision(
        bundle, precision.name, precision.normals, out, biases=precision.biases,
        quantiser=precision.quantiser, say=typer.echo,
    )  # fmt: skip
    typer.echo(f"{precision.name} against float32: {made.drift.text()}")
    return made.bundle
