"""The least time a step could take on this machine, by arithmetic and by memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unblemish.bundle.manifest import Manifest, Tensor
from unblemish.runtime.profiling.peaks import Peaks


@dataclass(frozen=True)
class Roofline:
    """One value-and-gradient step against the machine's limits.

    Args:
        flops: of forward and backward graph, batch 1, multiply and add counted separately.
        bytes_moved: at the least: every weight read once per graph, every kept tensor written and
            read once, latent and image.
        compute_ms, memory_ms: what each would take at the measured limit.
        limit: 'compute' or 'memory', whichever takes longer.
        share: that time over the measured median; 1 would be the limit itself.
        gflops: reached, 10^9/s.
    """

    flops: int
    bytes_moved: int
    compute_ms: float
    memory_ms: float
    limit: str
    share: float
    gflops: float


def roofline(manifest: Manifest, peaks: Peaks, step_ms: float) -> Roofline:
    """Compare a step of `step_ms` (forward and backward, batch 1) with `peaks`."""
    flops = step_flops(manifest)
    moved = step_bytes(manifest)
    compute = flops / peaks.gflops * 1e-6
    memory = moved / peaks.gigabytes * 1e-6
    return Roofline(
        flops=flops,
        bytes_moved=moved,
        compute_ms=compute,
        memory_ms=memory,
        limit="compute" if compute >= memory else "memory",
        share=max(compute, memory) / step_ms,
        gflops=flops / step_ms * 1e-6,
    )


def step_flops(manifest: Manifest) -> int:
    """Operations of one step at batch 1, as the manifest states them."""
    return sum(manifest.graphs[r].flops for r in ("generator_forward", "generator_backward"))


def step_bytes(manifest: Manifest) -> int:
    """The least memory traffic of one step at batch 1, see `Roofline`."""
    forward, backward = (manifest.graphs[r] for r in ("generator_forward", "generator_backward"))
    # The graphs' files are their weights, but for a few kilobytes of structure.
    weights = sum(manifest.files[graph.file].bytes for graph in (forward, backward))
    written = sum(map(_bytes, forward.outputs))
    read = sum(map(_bytes, (*forward.inputs, *backward.inputs)))
    return weights + written + read + sum(map(_bytes, backward.outputs))


def _bytes(tensor: Tensor) -> int:
    """Size at batch 1: symbolic dimensions count as 1."""
    count = int(np.prod([d if isinstance(d, int) else 1 for d in tensor.shape], dtype=np.int64))
    return count * np.dtype(tensor.dtype).itemsize
