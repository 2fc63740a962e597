"""The profile of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unblemish.cli.profile_options import ProfileOptions, format_times, given_reads

if TYPE_CHECKING:
    from unblemish.bundle import Bundle
    from unblemish.runtime.profiling.stages import Read


def reads(bundle: Bundle, options: ProfileOptions) -> list[Read]:
    """Readers of the images given. Raises: ConfigError where there are none."""
    return given_reads(options, "an autoencoder")


def measure(bundle: Bundle, options: ProfileOptions, reads: Sequence[Read]) -> dict[str, Any]:
    """Stages of inspections, and what a turn and a step of the search take."""
    from dataclasses import asdict

    from unblemish.runtime.inspector import Inspector
    from unblemish.runtime.profiling import profile_projection, profile_stages

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
