"""`unblemish profile`: where the time goes, and how far that is from the machine's limits."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unblemish.bundle import Bundle
    from unblemish.runtime.profiling.stages import Read


class Baseline(str, Enum):
    """What to compare a step with."""

    TORCH = "torch"


def profile(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What to profile.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    baseline: Annotated[
        Baseline | None, typer.Option(help="Time the same step in torch too, by turns.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to inspect [images the model makes].")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="auto (ONNX Runtime), onnxruntime, openvino or torch.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine [all].")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time for each of the two parts.")] = 5.0,
) -> None:
    """Time every stage and step, and compare with the machine's limits."""
    import json

    from unblemish.bundle import Bundle

    opened = Bundle.open(bundle)
    if opened.manifest.detector is not None:
        result = _measure_detector(opened, backend, threads, baseline, images, seconds)
        typer.echo(json.dumps(result, indent=2) if as_json else _detector_text(result))
        return
    result = _measure(opened, backend, threads, baseline, images, seconds)
    typer.echo(json.dumps(result, indent=2) if as_json else _text(result))


def _measure_detector(
    opened: Bundle,
    backend: str,
    threads: int | None,
    baseline: Baseline | None,
    images: Path | None,
    seconds: float,
) -> dict[str, Any]:
    from dataclasses import asdict

    from unblemish.errors import ConfigError
    from unblemish.runtime.inspector import Inspector
    from unblemish.runtime.profiling import profile_crops, profile_inspections

    if images is None:
        raise ConfigError(
            "a detector makes no images of its own. Give some to inspect, best with defects: "
            "--images DIR."
        )
    if baseline is not None:
        raise ConfigError("--baseline compares steps of a generator; a detector's has none.")
    reads = _reads(opened, backend, images)
    with Inspector.open(opened, backend=backend, threads=threads) as inspector:
        refine = inspector.refine
        stages = profile_inspections(inspector, reads, seconds=seconds)
    crops = profile_crops(opened, backend=backend, threads=threads, seconds=seconds)
    return {
        "bundle": opened.manifest.name,
        "backend": backend,
        "refine": refine,
        "frames": len(reads),
        "per_image_ms": {name: asdict(times) for name, times in stages.items()},
        "per_crop_ms": [asdict(crop) for crop in crops],
    }


def _measure(
    opened: Bundle,
    backend: str,
    threads: int | None,
    baseline: Baseline | None,
    images: Path | None,
    seconds: float,
) -> dict[str, Any]:
    from dataclasses import asdict

    from unblemish.runtime.inspector import Inspector
    from unblemish.runtime.profiling import measure_peaks, profile_stages, profile_steps, roofline

    reads = _reads(opened, backend, images)
    with Inspector.open(opened, backend=backend, threads=threads) as inspector:
        stages = profile_stages(inspector, reads, seconds=seconds)
    steps = profile_steps(
        opened,
        backend=backend,
        threads=threads,
        baseline=baseline.value if baseline else None,
        seconds=seconds,
    )
    peaks = measure_peaks(threads)
    engine_ms = steps.stages["forward"].p50 + steps.stages["backward"].p50
    return {
        "bundle": opened.manifest.name,
        "backend": backend,
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
        "roofline": asdict(roofline(opened.manifest, peaks, engine_ms)),
    }


def _reads(bundle: Bundle, backend: str, folder: Path | None) -> list[Read]:
    """Readers of the images in `folder`, or of PNGs, in memory, of images the generator makes."""
    from functools import partial

    from unblemish.images import decode_image, list_images, read_image

    if folder is not None:
        return [partial(read_image, path) for path in list_images(folder)]
    return [partial(decode_image, content) for content in _made(bundle, backend)]


def _made(bundle: Bundle, backend: str, count: int = 8) -> list[bytes]:
    import cv2
    import numpy as np

    from unblemish.images import encode_image
    from unblemish.runtime.backends import open_backend
    from unblemish.runtime.engines import load_engines

    manifest = bundle.manifest
    engines = load_engines(bundle, open_backend(backend))
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


def _text(result: dict[str, Any]) -> str:
    machine, roof = result["machine"], result["roofline"]
    steps = result["steps_per_image"]
    lines = [
        f"{result['bundle']}, backend {result['backend']}, {machine['threads']} threads",
        "",
        f"per image, {steps['p50']:.0f} steps at the median",
        _times(result["per_image_ms"]),
        "",
        "per step, batch 1",
        _times(result["per_step_ms"]),
    ]
    if result["baseline"] is not None:
        lines += [
            "",
            "per step in torch, batch 1",
            _times(result["baseline"]["per_step_ms"]),
            f"torch takes {result['baseline']['speedup']:.2f} times as long "
            "(median over the rounds, both timed in each)",
        ]
    return "\n".join(
        [
            *lines,
            "",
            f"machine   {machine['gflops']:.0f} GFLOP/s matrix product ({machine['gemm']}), "
            f"{machine['gigabytes']:.1f} GB/s copy",
            f"step      {roof['flops'] / 1e9:.3f} GFLOP, {roof['bytes_moved'] / 1e6:.1f} MB at "
            f"least; {roof['gflops']:.0f} GFLOP/s reached",
            f"roofline  {roof['compute_ms']:.2f} ms by arithmetic, {roof['memory_ms']:.2f} ms by "
            f"memory: {roof['share']:.0%} of the {roof['limit']} limit",
        ]
    )


def _detector_text(result: dict[str, Any]) -> str:
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
            _times(result["per_image_ms"]),
            "",
            "per crop, model px: scores of one version, and scores with their gradient",
            _times(crops),
        ]
    )


def _times(rows: dict[str, dict[str, float]]) -> str:
    from unblemish.cli.table import format_table

    cells = [
        (name, *(f"{row[p]:.2f}" for p in ("p50", "p90", "p99")), f"{row['samples']:.0f}")
        for name, row in rows.items()
    ]
    return format_table(("stage, ms", "p50", "p90", "p99", "samples"), cells)
