"""One batch from bundle to report: what `unblemish inspect` and `unblemish demo` run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unblemish.batch.album import Album, Entry
from unblemish.batch.records import Record
from unblemish.batch.run import (
    Inspects,
    Result,
    check_truth,
    inspect_sources,
    latency_percentiles,
)
from unblemish.batch.sources import Source
from unblemish.batch.writer import ResultWriter
from unblemish.bundle import Bundle, Manifest
from unblemish.calibration.metrics import Judged, evaluate
from unblemish.errors import ConfigError
from unblemish.files import write_atomic
from unblemish.report.page import report_available

Listen = Callable[[Record], None]
Open = Callable[..., Inspects]


@dataclass(frozen=True)
class BatchOptions:
    """What a batch is run with.

    Args:
        bundle: folder of the bundle.
        out: folder for everything that is written.
        deadline_ms: time for one frame, > 0; None for as long as the search takes.
        truth: folder of truth masks, or None.
        inspector: settings handed to `Inspector.open`.
    """

    bundle: Path
    out: Path
    deadline_ms: float | None = None
    truth: Path | None = None
    inspector: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a batch came to.

    Args:
        latency: percentiles, see `latency_percentiles`.
        metrics: content of metrics.json, None without a truth.
        entries: category -> pictures of its highest scores.
        report: None where the extra 'report' is not installed.
    """

    records: tuple[Record, ...]
    latency: dict[str, float | None]
    metrics: dict[str, Any] | None
    entries: Mapping[str, tuple[Entry, ...]]
    report: Path | None

    @property
    def errors(self) -> tuple[Record, ...]:
        """Records of the frames that could not be inspected."""
        return tuple(record for record in self.records if "error" in record)

    @property
    def defective(self) -> tuple[Record, ...]:
        """Records of the frames with verdict 'fail'."""
        return tuple(record for record in self.records if record.get("verdict") == "fail")


def open_inspector(bundle: Path, settings: Mapping[str, Any]) -> Inspects:
    """Open the inspector of a bundle."""
    from unblemish.runtime.inspector import Inspector

    return Inspector.open(bundle, **settings)


def run_batch(
    options: BatchOptions,
    sources: Sequence[Source],
    listen: Listen,
    *,
    opener: Open = open_inspector,
) -> Outcome:
    """Inspect `sources`, write the results under `options.out`, and the report where possible.

    Args:
        listen: called with each record once its files are written.
        opener: makes the inspector.
    Raises: ConfigError for a deadline that is not positive or a bundle that is not calibrated;
    BundleError, BackendError, SourceError where the bundle, the engine or the output folder does
    not work. Errors of single frames are records.
    """
    if options.deadline_ms is not None and not options.deadline_ms > 0:
        raise ConfigError(f"the deadline is {options.deadline_ms} ms; expected more than 0.")
    if options.truth is not None:
        check_truth(sources, options.truth)
    manifest = _calibrated(Bundle.open(options.bundle, verify=False))
    album = _album(sources, manifest)
    records: list[Record] = []
    with (
        closing(opener(options.bundle, options.inspector)) as inspector,
        ResultWriter(options.out) as writer,
    ):
        results = inspect_sources(
            inspector, sources, deadline_ms=options.deadline_ms, truth=options.truth
        )
        judged = _judge(_kept(results, writer, album, records, listen))
        metrics = None
        if options.truth is None:
            deque(judged, maxlen=0)  # draws every frame and keeps none
        else:
            metrics = _figures(judged, records)
            writer.json_file("metrics.json", metrics)
    latency = latency_percentiles(records)
    report = None
    if report_available():
        report = _report(options, manifest, records, album, metrics, latency)
    return Outcome(tuple(records), latency, metrics, album.entries(), report)


def _calibrated(bundle: Bundle) -> Manifest:
    if bundle.manifest.calibration is None:
        raise ConfigError(
            f"bundle {bundle.path} is not calibrated, so there is no threshold to decide by. "
            f"Run: unblemish calibrate {bundle.path} --normals DIR"
        )
    return bundle.manifest


def _kept(
    results: Iterable[Result],
    writer: ResultWriter,
    album: Album,
    records: list[Record],
    listen: Listen,
) -> Iterator[Result]:
    """Pass results on once they are written, pictured and told of."""
    for result in results:
        saved = writer.save(result)
        album.add(saved)
        records.append(saved.record)
        listen(saved.record)
        yield saved


def _judge(results: Iterable[Result]) -> Iterator[Judged]:
    for result in results:
        found = result.inspection
        if found is not None:
            category = result.source.category
            yield Judged(
                category, found.score, found.mask, result.truth, found.image_score, found.verdict
            )


def _figures(judged: Iterable[Judged], records: Sequence[Record]) -> dict[str, Any]:
    """Judge the batch; `records` fill up while `judged` is drawn."""
    figures = evaluate(judged)
    figures["overall"]["latency_ms"] = latency_percentiles(records)
    for name, category in figures["per_category"].items():
        of_category = [record for record in records if record["category"] == name]
        category["latency_ms"] = latency_percentiles(of_category)
    return figures


def _album(sources: Sequence[Source], manifest: Manifest) -> Album:
    calibration = manifest.calibration
    categories = len({source.category for source in sources})
    return Album(categories, None if calibration is None else calibration.pixel_threshold)


def _report(
    options: BatchOptions,
    manifest: Manifest,
    records: Sequence[Record],
    album: Album,
    metrics: dict[str, Any] | None,
    latency: dict[str, float | None],
) -> Path:
    from unblemish.report.inspection_page import inspection_page

    asked = {name: str(value) for name, value in options.inspector.items() if value is not None}
    if options.deadline_ms is not None:
        asked["deadline"] = f"{options.deadline_ms:g} ms"
    path = options.out / "report.html"
    page = inspection_page(
        manifest, records, album.figures(), metrics=metrics, latency=latency, settings=asked
    )
    write_atomic(path, page)
    return path
