"""The profile of an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unblemish.cli.profile_options import ProfileOptions, folder_reads, format_times

if TYPE_CHECKING:
    from unblemish.bundle import Bundle


def measure(bundle: Bundle, options: ProfileOptions) -> dict[str, Any]:
    """Stages of inspections, and what a turn and a step of the search take. Raises: ConfigError."""
    from dataclasses import asdict

    from unblemish.errors import ConfigError
    from unblemish.runtime.inspector import Inspector
    from unblemish.runtime.profiling import profile_projection, profile_stages

    if options.images is None:
        raise ConfigError("an autoencoder is profiled on images of the part: --images DIR.")
    if options.baseline is not None:
        raise ConfigError("--baseline compares steps of a generator; this is an autoencoder.")
    reads = folder_reads(options.images)
    with Inspector.open(bundle, backend=options.backend, threads=options.threads) as inspector:
        refine = inspector.refine
        stages = profile_stages(inspector, reads, seconds=options.seconds)
    steps = profile_projection(
        bundle, backend=options.backend, threads=options.threads, seconds=options.seconds
    )
    return {
        "bundle": bundle.manifest.name,
        "backend": options.backend,
        "refine": refine,
        "frames": len(reads),
        "per_image_ms": {name: asdict(times) for name, times in stages.items() if name != "steps"},
        "steps_per_image": asdict(stages["steps"]),
        "per_step_ms": {name: asdict(times) for name, times in steps.items()},
    }


def text(result: dict[str, Any]) -> str:
    """The profile as tables."""
    return "\n".join(
        [
            f"{result['bundle']}, refine {result['refine']}, backend {result['backend']}",
            "",
            f"per image, {result['steps_per_image']['p50']:.0f} steps at the median",
            format_times(result["per_image_ms"]),
            "",
            "per step, batch 1: a turn of the fast schedule, a step of the paper's, and where the "
            "decoder is apart one of the code's search",
            format_times(result["per_step_ms"]),
        ]
    )
