"""The profile of a generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unblemish.cli.profile_options import ProfileOptions, folder_reads, format_times

if TYPE_CHECKING:
    from unblemish.bundle import Bundle
    from unblemish.runtime.profiling.stages import Read


def reads(bundle: Bundle, options: ProfileOptions) -> list[Read]:
    """Readers of the images given, or of PNGs, in memory, of images the generator makes."""
    from functools import partial

    from unblemish.images import decode_image

    if options.images is not None:
        return folder_reads(options.images)
    return [partial(decode_image, content) for content in _made(bundle, options.backend)]


def measure(bundle: Bundle, options: ProfileOptions, reads: Sequence[Read]) -> dict[str, Any]:
    """Stages of inspections, steps beside the baseline's, and the machine's limits."""
    from dataclasses import asdict

    from unblemish.runtime.inspector import Inspector
    from unblemish.runtime.profiling import measure_peaks, profile_stages, profile_steps, roofline

    with Inspector.open(bundle, backend=options.backend, threads=options.threads) as inspector:
        stages = profile_stages(inspector, reads, seconds=options.seconds)
    steps = profile_steps(
        bundle,
        backend=options.backend,
        threads=options.threads,
        baseline=options.baseline,
        seconds=options.seconds,
    )
    peaks = measure_peaks(options.threads)
    engine_ms = steps.stages["forward"].p50 + steps.stages["backward"].p50
    return {
        "bundle": bundle.manifest.name,
        "backend": options.backend,
        "frames": len(reads),
        "per_image_ms": {name: asdict(times) for name, times in stages.items() if name != "steps"},
        "steps_per_image": asdict(stages["steps"]),
        "per_step_ms": {name: asdict(times) for name, times in steps.stages.items()},
        "baseline": None
        if steps.baseline is None
        else {
            "name": "torch",
            "per_step_ms": {name: asdict(times) for name, times in steps.baseline.items()},
            "speedup": steps.speedup,
        },
        "machine": asdict(peaks),
        "roofline": asdict(roofline(bundle.manifest, peaks, engine_ms)),
    }


def _made(bundle: Bundle, backend: str, count: int = 8) -> list[bytes]:
    import cv2
    import numpy as np

    from unblemish.images import encode_image
    from unblemish.runtime.backends import open_backend
    from unblemish.runtime.engines import load_engines

    manifest = bundle.manifest
    engines = load_engines(bundle, open_backend(backend, bundle=bundle))
    random = np.random.default_rng(0)
    made = engines.generate(
        random.standard_normal((count, manifest.model.latent_size), dtype=np.float32)
    )
    low, high = manifest.preprocess.low, manifest.preprocess.high
    white = min(manifest.preprocess.white or 255, 255)
    shades = np.clip((made - low) / (high - low) * white + 0.5, 0, white).astype(np.uint8)
    frames = [np.squeeze(image.transpose(1, 2, 0)) for image in shades]
    calibration = manifest.calibration
    if calibration is not None and calibration.frame_sizes is not None:
        # The size that the camera gives: native stages cost by it, not by the model's size.
        height, width = calibration.frame_sizes[1]
        frames = [np.asarray(cv2.resize(frame, (width, height)), np.uint8) for frame in frames]
    return [encode_image(frame) for frame in frames]


def text(result: dict[str, Any]) -> str:
    """The profile as tables."""
    steps = result["steps_per_image"]
    threads = f", {result['machine']['threads']} threads" if "machine" in result else ""
    lines = [
        f"{result['bundle']}, backend {result['backend']}{threads}",
        "",
        f"per image, {steps['p50']:.0f} steps at the median",
        format_times(result["per_image_ms"]),
        "",
        "per step, batch 1",
        format_times(result["per_step_ms"]),
    ]
    if result["baseline"] is not None:
        lines += [
            "",
            "per step in torch, batch 1",
            format_times(result["baseline"]["per_step_ms"]),
            f"torch takes {result['baseline']['speedup']:.2f} times as long "
            "(median over the rounds, both timed in each)",
        ]
    if "roofline" in result:
        lines += ["", *_limits(result["machine"], result["roofline"])]
    return "\n".join(lines)


def _limits(machine: dict[str, Any], roof: dict[str, Any]) -> list[str]:
    return [
        f"machine   {machine['gflops']:.0f} GFLOP/s matrix product ({machine['gemm']}), "
        f"{machine['gigabytes']:.1f} GB/s copy",
        f"step      {roof['flops'] / 1e9:.3f} GFLOP, {roof['bytes_moved'] / 1e6:.1f} MB at "
        f"least; {roof['gflops']:.0f} GFLOP/s reached",
        f"roofline  {roof['compute_ms']:.2f} ms by arithmetic, {roof['memory_ms']:.2f} ms by "
        f"memory: {roof['share']:.0%} of the {roof['limit']} limit",
    ]
