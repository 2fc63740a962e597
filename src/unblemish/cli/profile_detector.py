"""The profile of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unblemish.cli.profile_options import ProfileOptions, format_times, given_reads

if TYPE_CHECKING:
    from unblemish.bundle import Bundle
    from unblemish.runtime.profiling.stages import Read


def reads(bundle: Bundle, options: ProfileOptions) -> list[Read]:
    """Readers of the images given. Raises: ConfigError where there are none."""
    return given_reads(options, "a detector")


def measure(bundle: Bundle, options: ProfileOptions, reads: Sequence[Read]) -> dict[str, Any]:
    """Stages of inspections, and passes by the size of the crop."""
    from dataclasses import asdict

    from unblemish.runtime.inspector import Inspector
    from unblemish.runtime.profiling import profile_crops, profile_inspections

    with Inspector.open(bundle, backend=options.backend, threads=options.threads) as inspector:
        refine = inspector.refine
        stages = profile_inspections(inspector, reads, seconds=options.seconds)
    crops = profile_crops(
        bundle, backend=options.backend, threads=options.threads, seconds=options.seconds
    )
    return {
        "bundle": bundle.manifest.name,
        "backend": options.backend,
        "refine": refine,
        "frames": len(reads),
        "per_image_ms": {name: asdict(times) for name, times in stages.items()},
        "per_crop_ms": [asdict(crop) for crop in crops],
    }


def text(result: dict[str, Any]) -> str:
    """The profile as tables."""
    crops = {
        f"{crop['width']} x {crop['height']}, {what}": crop[what]
        for crop in result["per_crop_ms"]
        for what in ("compare", "step")
    }
    return "\n".join(
        [
            f"{result['bundle']}, refine {result['refine']}, backend {result['backend']}",
            "",
            f"per image, {result['frames']} images",
            format_times(result["per_image_ms"]),
            "",
            "per crop, model px: scores of one version, and scores with their gradient",
            format_times(crops),
        ]
    )
