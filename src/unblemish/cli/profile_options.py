"""What the profiles of all methods share: options, images to inspect, the table of times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unblemish.runtime.profiling.stages import Read


@dataclass(frozen=True)
class ProfileOptions:
    """What is asked of a profile: see `unblemish profile`."""

    backend: str
    threads: int | None
    baseline: str | None
    images: Path | None
    seconds: float


def folder_reads(folder: Path) -> list[Read]:
    """Readers of the images in a folder. Raises: SourceError where there is none."""
    from unblemish.images import list_images, read_image

    return [partial(read_image, path) for path in list_images(folder)]


def given_reads(options: ProfileOptions, kind: str) -> list[Read]:
    """Readers of the images given, for bundles that make none.

    Args:
        kind: of the bundle, with its article, for the errors.
    Raises: ConfigError without a folder, or with a baseline; as `folder_reads`.
    """
    from unblemish.errors import ConfigError

    if options.images is None:
        raise ConfigError(
            f"{kind} makes no images of its own. Give some to inspect, best with defects: "
            "--images DIR."
        )
    if options.baseline is not None:
        raise ConfigError(f"--baseline compares steps of a generator; this is {kind}.")
    return folder_reads(options.images)


def format_times(rows: dict[str, dict[str, float]]) -> str:
    """Percentiles by stage, milliseconds."""
    from unblemish.cli.table import format_table

    cells = [
        (name, *(f"{row[p]:.2f}" for p in ("p50", "p90", "p99")), f"{row['samples']:.0f}")
        for name, row in rows.items()
    ]
    return format_table(("stage, ms", "p50", "p90", "p99", "samples"), cells)
