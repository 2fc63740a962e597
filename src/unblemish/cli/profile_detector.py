"""The profile of a detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unblemish.cli.profile_options import ProfileOptions, folder_reads, format_times

if TYPE_CHECKING:
    from unblemish.bundle import Bundle


def measure(bundle: Bundle, options: ProfileOptions) -> dict[str, Any]:
    """Stages of inspections, and passes by the size of the crop. Raises: ConfigError."""
    from dataclasses import asdict

    from unblemish.errors import ConfigError
    from unblemish.runtime.inspector import Inspector
    from unblemish.runtime.profiling import profile_crops, profile_inspections

    if options.images is None:
        raise ConfigError(
            "a detector makes no images of its own. Give some to inspect, best with defects: "
            "--images DIR."
        )
    if options.baseline is not None:
        raise ConfigError("--baseline compares steps of a generator; a detector's has none.")
    reads = folder_reads(options.images)
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
