"""The profile of a bundle whose searches run on a GPU: what is added to that of its method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unblemish.cli.profile_options import ProfileOptions
from unblemish.cli.table import format_table

if TYPE_CHECKING:
    from unblemish.bundle import Bundle
    from unblemish.runtime.profiling.stages import Read


def measure(
    bundle: Bundle, options: ProfileOptions, reads: Sequence[Read]
) -> dict[str, Any] | None:
    """Steps on the device and the ceilings; None where the search runs on the host."""
    from dataclasses import asdict

    from unblemish.runtime.backends import open_backend

    backend = open_backend(options.backend, options.threads, bundle=bundle)
    if not hasattr(backend, "on_device"):
        return None
    from unblemish.runtime.backends.nvidia import find_gpu
    from unblemish.runtime.profiling.device import profile_device

    frames = [read() for read in reads]
    found = profile_device(
        bundle, backend, frames, seconds=options.seconds, threads=options.threads
    )
    return None if found is None else {"gpu": str(find_gpu()), **asdict(found)}


def joined(result: dict[str, Any], device: dict[str, Any]) -> dict[str, Any]:
    """The profile of the method with this; the limits of the host's cores have no part in it."""
    kept = {name: part for name, part in result.items() if name not in ("machine", "roofline")}
    return {**kept, "device": device}


def text(result: dict[str, Any]) -> str:
    """The profile as tables."""
    head = [
        f"on the device: {result['gpu']}",
        f"{result['frames_per_second']:.1f} frames/s inspected, reading the files left out",
        *_ceilings(result["ceilings"]),
    ]
    steps = [line for step in result["steps"] for line in ("", *_step(step))]
    if result["outside"]:
        rows = [_row(stage) for stage in result["outside"]]
        steps += ["", "outside of searches, for a frame", format_table(_COLUMNS, rows)]
    return "\n".join([*head, *steps])


def _ceilings(c: dict[str, Any]) -> list[str]:
    products = ", ".join(f"{rate:.1f} ({dtype})" for dtype, rate in c["gemm"].items())
    return [
        f"copy       {c['copy']:.0f} GB/s, in the cache of {c['cache'] / 2**20:.1f} MiB "
        f"{c['cached']:.0f} GB/s; from the host {c['upload']:.1f}, to it {c['download']:.1f} GB/s",
        f"product    {products or 'not measured with this engine'} TFLOP/s",
        f"launch     {1e3 * c['least']:.1f} us a kernel, {1e3 * c['node']:.1f} us in a graph, "
        f"{1e3 * c['launch']:.1f} us from the host; {1e3 * c['mark']:.1f} us a mark, taken off",
    ]


def _step(step: dict[str, Any]) -> list[str]:
    rows = [
        (name, *(f"{it['device'][p]:.3f}" for p in ("p50", "p90", "p99")), f"{it['gap']:.3f}",
         f"{it['host']['p50']:.3f}")
        for name, it in (("as a graph", step["captured"]), ("in pieces", step["uncaptured"]))
        if it is not None
    ]  # fmt: skip
    saved = "cannot be captured" if step["saved"] is None else f"saves {step['saved']:.3f} ms"
    replayed = step["captured"] or step["uncaptured"]
    share = replayed["gap"] / replayed["device"]["p50"]
    gap = ("gap", "", f"{replayed['gap']:.4f}", f"{share:.0%}", *[""] * (len(_COLUMNS) - 4))
    lines = [
        f"{step['step']}, batch {step['batch']}; the graph {saved}",
        format_table(("iteration, ms", "p50", "p90", "p99", "gap", "host"), rows),
        "",
        format_table(_COLUMNS, [*map(_row, step["stages"]), gap]),
    ]
    if not step["queued"]:
        lines.append("the host is too slow to put pieces there in time: some of it is in these")
    return [*lines, step["advice"]]


_COLUMNS = (
    "stage", "pieces", "ms", "share", "GB/s", "of copy", "TFLOP/s", "of product", "of limit",
    "bound by",
)  # fmt: skip


def _row(stage: dict[str, Any]) -> tuple[str, ...]:
    return (
        stage["name"], f"{stage['count']:.3g}", f"{stage['milliseconds']:.4f}",
        f"{stage['share']:.0%}",
        _number(stage["gigabytes"], ".1f"), _number(stage["of_copy"], ".0%"),
        _number(stage["teraflops"], ".2f"), _number(stage["of_gemm"], ".0%"),
        _number(stage["of_limit"], ".0%"), stage["bound"] or "",
    )  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
