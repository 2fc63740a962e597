"""The report of an inspected batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from unblemish.bundle import Manifest
from unblemish.report.page import Figure, Section, Table, render_page
from unblemish.report.plots import bar_plot, histogram

_FIGURES = (
    ("dice_best_per_image", "best Dice per image"),
    ("dice_at_threshold", "Dice"),
    ("iou_at_threshold", "IoU"),
    ("pixel_auroc", "pixel AUROC"),
    ("aupro", "AUPRO"),
    ("image_auroc", "image AUROC"),
    ("detection_rate", "rejected"),
    ("false_reject_rate", "false rejects"),
    ("images", "images"),
)
_DASH = "–"


def inspection_page(
    manifest: Manifest,
    records: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Sequence[Figure]],
    *,
    metrics: Mapping[str, Any] | None = None,
    latency: Mapping[str, float | None] | None = None,
    settings: Mapping[str, str] | None = None,
) -> str:
    """Render the page from the records of a batch.

    Args:
        records: as in results.jsonl.
        pictures: category -> figures.
        metrics: content of metrics.json where a truth was given.
        latency: percentiles in ms, see `latency_percentiles`.
        settings: further rows of the table of settings.
    Raises: MissingDependencyError where jinja2 or matplotlib is not installed.
    """
    inspected = [record for record in records if "error" not in record]
    failed = [record for record in records if "error" in record]
    sections = [_summary(inspected, failed, latency)]
    if metrics is not None:
        sections.append(_metrics(metrics))
    sections.append(_scores(manifest, inspected))
    sections += [
        Section(f"Pictures: {category}", figures=tuple(figures), wide=True)
        for category, figures in pictures.items()
    ]
    sections.append(_measured(inspected))
    if failed:
        rows = tuple((str(record["source"]), str(record["error"])) for record in failed)
        sections.append(
            Section("Files that could not be inspected", table=Table(("file", "why"), rows))
        )
    sections.append(_settings(manifest, settings or {}))
    return render_page(f"Inspection with {manifest.name}", _lead(inspected, failed), sections)


def _lead(inspected: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]]) -> str:
    defective = sum(record["verdict"] == "fail" for record in inspected)
    text = f"{defective} of {len(inspected)} images show defects."
    return text if not failed else f"{text} {len(failed)} could not be inspected."


def _summary(
    inspected: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, Any]],
    latency: Mapping[str, float | None] | None,
) -> Section:
    total: Counter[str] = Counter(record["category"] for record in (*inspected, *failed))
    defective = Counter(r["category"] for r in inspected if r["verdict"] == "fail")
    errors = Counter(record["category"] for record in failed)
    rows = tuple(
        (
            name,
            str(count),
            str(defective[name]),
            str(count - defective[name] - errors[name]),
            str(errors[name]),
        )
        for name, count in sorted(total.items())
    )
    text = ""
    if latency and latency.get("p50") is not None:
        parts = ", ".join(f"{value:.0f} ms ({name})" for name, value in latency.items())
        text = f"Time for one image, from the frame in memory to the verdict: {parts}."
    kept = [record["kept_plain"] for record in inspected if record.get("kept_plain")]
    if kept:
        text += (
            f" In {len(kept)} images, {sum(kept)} regions kept the detector's own outline: their "
            "refinement left what was strange as it was."
        )
    columns = ("folder", "images", "with defects", "clean", "errors")
    return Section("Summary", text, Table(columns, rows))


def _metrics(metrics: Mapping[str, Any]) -> Section:
    columns = ("category", *(title for _, title in _FIGURES))
    named = [*metrics["per_category"].items(), ("overall", metrics["overall"])]
    rows = tuple(
        (name, *(_number(figures.get(key)) for key, _ in _FIGURES)) for name, figures in named
    )
    defects = {
        n: f for n, f in metrics["per_category"].items() if f["dice_at_threshold"] is not None
    }
    plot = (
        bar_plot(
            list(defects),
            {
                title: [figures[key] for figures in defects.values()]
                for key, title in (_FIGURES[0], _FIGURES[1], _FIGURES[2])
            },
            title="Overlap with the truth",
            y_label="mean over the images",
        )
        if defects
        else None
    )
    figures = () if plot is None else (Figure(plot, "Overlap of found and true defects, by kind."),)
    text = (
        "Dice and IoU are means over the images with a defect: 'best' allows each image its own "
        "threshold, the others use the bundle's. AUROC and AUPRO (to a false positive rate of 0.3) "
        "do not depend on a threshold. False rejects are normal images that failed."
    )
    return Section("Against the truth", text, Table(columns, rows), figures)


def _scores(manifest: Manifest, inspected: Sequence[Mapping[str, Any]]) -> Section:
    groups: dict[str, list[float]] = {}
    for record in inspected:
        if record["image_score"] is not None:
            groups.setdefault(record["category"], []).append(record["image_score"])
    calibration = manifest.calibration
    mark = None if calibration is None else (calibration.image_threshold, "threshold")
    plot = histogram(groups, title="Image scores", x_label="score", y_label="images", mark=mark)
    text = "" if calibration else "The bundle is not calibrated: its thresholds are provisional."
    return Section("Scores", text, figures=(Figure(plot, "How the image scores are spread."),))


def _measured(inspected: Sequence[Mapping[str, Any]]) -> Section:
    rows = []
    for record in inspected:
        for region in record["regions"]:
            x, y = region["centroid"]
            size = [_measure(region, key) for key in ("length", "width", "diameter")]
            rows.append((record["name"], f"{x:.0f}, {y:.0f}", _area(region), *size))
    columns = ("image", "centre (x, y)", "area", "length", "width", "diameter")
    text = "" if rows else "No defects were found."
    return Section("Measured defects", text, Table(columns, tuple(rows)) if rows else None)


def _settings(manifest: Manifest, more: Mapping[str, str]) -> Section:
    calibration, size = manifest.calibration, manifest.preprocess
    rows = {
        "bundle": f"{manifest.name} (written by unblemish {manifest.created_by})",
        "model": f"{manifest.model.kind}, {manifest.model.parameters:,} parameters, "
        f"{size.width} x {size.height} x {size.channels}, {size.geometry}",
        "lambda": f"{manifest.rgi.lam:.4g}",
    }
    if calibration is not None:
        rows["pixel threshold"] = f"{calibration.pixel_threshold:.4g}"
        rows["image threshold"] = f"{calibration.image_threshold:.4g}"
        rows["calibrated on"] = (
            f"{calibration.normals} normal images, false rejects at most "
            f"{calibration.false_reject_rate:.3g}"
        )
    table = Table(("setting", "value"), tuple({**rows, **more}.items()))
    return Section("Settings", table=table)


def _number(value: float | int | None) -> str:
    return _DASH if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _measure(region: Mapping[str, Any], key: str) -> str:
    if region[f"{key}_mm"] is not None:
        return f"{region[f'{key}_mm']:.2f} mm"
    return f"{region[key]:.1f} px"


def _area(region: Mapping[str, Any]) -> str:
    if region["area_mm2"] is not None:
        return f"{region['area_mm2']:.3g} mm²"
    return f"{region['area']:.0f} px²"
