"""What was measured of a step on the device, against the ceilings: where its time goes, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from unblemish.runtime.profiling.device.ceilings import Ceilings
from unblemish.runtime.profiling.device.outside import Outside
from unblemish.runtime.profiling.device.timeline import Kind, Piece
from unblemish.runtime.profiling.device.watch import StepSamples
from unblemish.runtime.profiling.timing import Times

Bound = Literal["memory", "compute", "launch", "transfer"]

_NEAR = 0.6  # of a limit: more is not to be had by better code
_WAITING = 0.2  # of an iteration


@dataclass(frozen=True)
class Stage:
    """All pieces of one name: in an iteration, at the median, or for a frame, at the mean.

    Args:
        count: of pieces. milliseconds: without the marks. share: of the iteration, or the frame.
        nbytes, flops: at the least, see `Piece`.
        gigabytes: reached, 10^9 B/s. of_copy: over what a copy reaches, of arrays that leave the
            cache, or that stay in it where these do; of transfers, over those of pinned memory.
        teraflops: reached, 10^12/s. of_gemm: over the engine's matrix product.
        bound: which limit it would meet first. of_limit: how near it comes to that, 1 being there.
    """

    name: str
    kind: Kind
    count: float
    milliseconds: float
    share: float
    nbytes: int | None
    gigabytes: float | None
    of_copy: float | None
    flops: int | None
    teraflops: float | None
    of_gemm: float | None
    bound: Bound | None
    of_limit: float | None


@dataclass(frozen=True)
class Iteration:
    """One iteration in one way.

    Args:
        device, host: ms; the host's is that of putting it on the stream.
        gap: ms of the device beyond the pieces, at the median; below 0 where it saves on them.
    """

    device: Times
    host: Times
    gap: float


@dataclass(frozen=True)
class DeviceStep:
    """A step of searches on the device.

    Args:
        captured: replayed as a graph; None where an engine cannot be captured.
        uncaptured: put on the stream piece by piece.
        saved: ms that the capture saves.
        pieces: ms, the sum of the stages.
        queued: whether every piece was on the stream before its turn; where not, the times of the
            stages hold some of the host's.
    """

    step: str
    batch: int
    captured: Iteration | None
    uncaptured: Iteration
    saved: float | None
    pieces: float
    queued: bool
    stages: tuple[Stage, ...]
    advice: str


def report(samples: StepSamples, ceilings: Ceilings, product: str) -> DeviceStep:
    """Summarise what was measured, at least one search in each way.

    Args:
        product: dtype of the matrix product that engines are compared with.
    """
    times = _milliseconds(samples.pieces, ceilings.mark)
    pieces = math.fsum(times.values())
    uncaptured = _iteration(samples.uncaptured, samples.put, pieces)
    captured = _iteration(samples.captured, samples.launched, pieces) if samples.captured else None
    whole = (captured or uncaptured).device.p50
    stages = tuple(
        _stage(_together([p for p, _ in samples.pieces[0] if p.name == name], ms), whole, ceilings,
               product)
        for name, ms in times.items()
    )  # fmt: skip
    return DeviceStep(
        step=type(samples.replay.step).__name__,
        batch=samples.replay.step.progress.batch,
        captured=captured,
        uncaptured=uncaptured,
        saved=None if captured is None else uncaptured.device.p50 - captured.device.p50,
        pieces=pieces,
        queued=samples.queued,
        stages=stages,
        advice=_advice(captured, uncaptured, stages),
    )


def report_outside(
    outside: Outside, frames: int, frame: float, ceilings: Ceilings, product: str
) -> tuple[Stage, ...]:
    """Summarise what was not part of a search, for a frame.

    Args:
        frames: inspected while it was measured. frame: ms for one.
    """
    works = []
    for times, piece, milliseconds in outside.totals().values():
        count, nbytes, flops = times / frames, piece.nbytes, piece.flops
        each = replace(
            piece,
            nbytes=None if nbytes is None else round(count * nbytes),
            flops=None if flops is None else round(count * flops),
        )
        works.append(_Work(each, count, nbytes or 0, count * max(milliseconds - ceilings.mark, 0)))
    return tuple(_stage(work, frame, ceilings, product) for work in works)


@dataclass(frozen=True)
class _Work:
    """Pieces of one name as one: their number, the bytes of the largest, and ms without marks."""

    piece: Piece
    count: float
    largest: int
    milliseconds: float


def _together(pieces: Sequence[Piece], milliseconds: float) -> _Work:
    nbytes, flops = _sum([p.nbytes for p in pieces]), _sum([p.flops for p in pieces])
    largest = max(p.nbytes or 0 for p in pieces)
    return _Work(replace(pieces[0], nbytes=nbytes, flops=flops), len(pieces), largest, milliseconds)


def _milliseconds(
    iterations: Sequence[Sequence[tuple[Piece, float]]], mark: float
) -> dict[str, float]:
    """Of all pieces of a name in an iteration, at the median, without their marks."""
    names = dict.fromkeys(piece.name for piece, _ in iterations[0])
    return {
        name: max(0.0, float(np.median([
            math.fsum(ms - mark for piece, ms in iteration if piece.name == name)
            for iteration in iterations
        ])))
        for name in names
    }  # fmt: skip


def _iteration(device: Sequence[float], host: Sequence[float], pieces: float) -> Iteration:
    times = Times.of(device)
    return Iteration(times, Times.of(host), times.p50 - pieces)


def _stage(work: _Work, whole: float, ceilings: Ceilings, product: str) -> Stage:
    piece, count, milliseconds = work.piece, work.count, work.milliseconds
    kind, nbytes, flops = piece.kind, piece.nbytes, piece.flops
    gigabytes = None if nbytes is None or not milliseconds else 1e-6 * nbytes / milliseconds
    teraflops = None if flops is None or not milliseconds else 1e-9 * flops / milliseconds
    moving, most = _bandwidth(kind, work.largest, ceilings), ceilings.gemm.get(product)
    limits: dict[Bound, float] = {}
    if nbytes is not None:
        way: Bound = "transfer" if kind in ("upload", "download") else "memory"
        limits[way] = 1e-6 * nbytes / moving
    if flops is not None and most is not None:
        limits["compute"] = 1e-9 * flops / most
    if kind != "engine":  # which has launches of its own, that nobody counts
        limits["launch"] = count * ceilings.least
    bound = max(limits, key=lambda limit: limits[limit], default=None)
    return Stage(
        piece.name, kind, count, milliseconds, milliseconds / whole, nbytes, gigabytes,
        None if gigabytes is None else gigabytes / moving, flops, teraflops,
        None if teraflops is None or most is None else teraflops / most, bound,
        limits[bound] / milliseconds if bound and milliseconds else None,
    )  # fmt: skip


def _bandwidth(kind: Kind, largest: int, ceilings: Ceilings) -> float:
    """What pieces of these bytes at most could reach, 10^9 B/s."""
    if kind == "upload":
        return ceilings.upload
    if kind == "download":
        return ceilings.download
    return ceilings.cached if largest <= ceilings.cache // 2 else ceilings.copy


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _advice(captured: Iteration | None, uncaptured: Iteration, stages: Sequence[Stage]) -> str:
    """What to do about the largest loss."""
    iteration = captured or uncaptured
    if iteration.gap > _WAITING * iteration.device.p50:
        waits = f"the device waits for {iteration.gap / iteration.device.p50:.0%} of an iteration"
        if captured is None:
            return f"{waits}: an engine that can be captured (tensorrt), or more images at once"
        return f"{waits}: more images at once"
    top = max(stages, key=lambda stage: stage.milliseconds)
    told = f"{top.name} takes {top.share:.0%}"
    if top.of_limit is None:
        return f"{told}; its limit is not known"
    told += f", at {top.of_limit:.0%} of its {top.bound} limit"
    if top.of_limit < _NEAR:
        other = ", or another engine" if top.kind == "engine" else ""
        return f"{told}: more images at once may fill the device{other}"
    return f"{told}: {_AT_LIMIT[top.bound or 'launch']}"


_AT_LIMIT: dict[Bound, str] = {
    "compute": "less precision (export --precision fp16), or fewer iterations",
    "memory": "less precision (export --precision fp16), or fewer iterations",
    "launch": "more images at once",
    "transfer": "more images at once do not help; what is copied has to stay on the device",
}
