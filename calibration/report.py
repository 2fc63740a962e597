"""The calibration report: what was chosen, and why, on one self-contained page."""

from __future__ import annotations

from pathlib import Path

from unblemish.calibration.energy import COMPARING
from unblemish.calibration.result import CalibrationResult, Example
from unblemish.calibration.thresholds import reject_threshold
from unblemish.report.overlay import draw_overlay, png_bytes
from unblemish.report.page import Figure, Section, Table, render_page
from unblemish.report.plots import Line, histogram, line_plot


def report_path(bundle: Path) -> Path:
    """Where the report lies: `part.calibration.html` beside `part.bundle`."""
    return bundle.with_name(bundle.name.removesuffix(".bundle") + ".calibration.html")


def calibration_page(result: CalibrationResult) -> str:
    """Render the report.

    Raises: MissingDependencyError where jinja2 or matplotlib is not installed.
    """
    name = result.bundle.manifest.name
    lead = (
        f"{result.calibration.normals} normal images and {result.calibration.synthetic} synthetic "
        f"defects on them, in {result.seconds:.0f} s. Mean Dice of the synthetic defects "
        f"{result.calibration.dice:.3f}, {_percent(result.calibration.detection_rate)} of them "
        f"rejected; of the normal images {_percent(result.reject.observed_rate)}."
    )
    sections = [
        Section("Chosen", _asides(result), _chosen(result)),
        *([_sensitivity(result)] if len(result.tuning.trials) > 1 else []),
        _rejects(result),
        Section("Synthetic defects by kind", _KINDS, _kinds(result)),
        Section("Examples", _EXAMPLES, figures=tuple(map(_example, result.examples))),
    ]
    return render_page(f"Calibration of {name}", lead, sections)


_KINDS = (
    "Dice is the mean overlap of the mask found with the true one; rejected is the share of images "
    "whose score exceeds the image threshold. 'random' defects have a random colour, 'mean' "
    "defects the mean colour of what they cover, moved away where they would not show."
)
_EXAMPLES = "The first defect of every kind. Orange: the mask found. Blue: the truth."


def chosen_rows(result: CalibrationResult) -> list[tuple[str, str, str]]:
    """(setting, value, reason) of everything that was chosen."""
    c, best, scalar = result.calibration, result.tuning.best, scalar_name(result)
    tried = len(result.tuning.trials)
    how = f"best of {tried} by mean Dice" if tried > 1 else "by experience"
    return [
        *([(scalar, f"{result.lam:.4g}", how)] if scalar else []),
        *_compared(result),
        ("smoothing", f"{c.smoothing_sigma:g} px", "sigma of the best mean Dice"),
        ("weights", result.view, _weights(result)),
        (
            "pixel threshold",
            f"{c.pixel_threshold:.4g}",
            f"mean Dice {c.dice or 0:.3f} with all of this, {best.dice:.3f} with smoothing alone",
        ),
        ("region threshold", f"{c.region_threshold:.4g}", "largest score a region must exceed"),
        ("opening", f"{c.open_radius} px", "radius of the disc"),
        ("smallest area", f"{c.min_area} px", "smaller regions are dropped"),
        _judged(result),
        ("image threshold", f"{c.image_threshold:.4g}", _rate(result)),
    ]


def _compared(result: CalibrationResult) -> list[tuple[str, str, str]]:
    """What an autoencoder's frame and projection are compared by."""
    energy = result.bundle.manifest.energy
    if energy is None or result.calibration.refine not in COMPARING:
        return []
    names = {"dssim": "structural dissimilarity", "l2": "residual"}
    return [("score", names[energy.score], "best Dice of the score maps")]


def scalar_name(result: CalibrationResult) -> str | None:
    """What the tuner chose: a generator's lambda, the onset of a detector's outline, or nothing."""
    manifest, refine = result.bundle.manifest, result.calibration.refine
    if manifest.energy is not None:
        return "lambda" if refine in ("energy", "latent") else None
    if manifest.detector is None:
        return "lambda"
    return None if refine == "none" else "onset"


def rate_note(result: CalibrationResult) -> str:
    """What the false-reject rate can mean with that many normal images."""
    reject, count = result.reject, len(result.normal_scores)
    observed = round(reject.observed_rate * count)
    text = f"{observed} of the {count} normal images used are rejected."
    if reject.method == "quantile":
        return f"{text} The threshold is a quantile of their scores."
    rare = reject.expected_rate < reject.smallest_observable
    beyond = (
        f" {count} images show no rate below {_percent(reject.smallest_observable)}: the "
        f"{_percent(reject.expected_rate)} asked for is extrapolated, and holds as far as the "
        f"scores fall off exponentially. {round(1 / reject.expected_rate)} images would show it."
    )
    return (
        f"{text} The threshold comes from the tail fitted to their largest scores"
        f", with the uncertainty of so few.{beyond if rare else ''}"
    )


def weakness_note(result: CalibrationResult) -> str | None:
    """A warning where most synthetic defects pass, or are found elsewhere than they are."""
    dice, caught = result.calibration.dice or 0.0, result.calibration.detection_rate or 0.0
    if caught >= 0.5 and dice >= 0.3:
        return None
    return (
        f"this bundle finds little: of the synthetic defects {_percent(caught)} are rejected, with "
        f"a mean Dice of {dice:.2f}. Either its model does not know these parts (look at the "
        "restored images, train longer or on more images), or the false-reject rate asked for is "
        "too small for so few normal images."
    )


def _chosen(result: CalibrationResult) -> Table:
    return Table(("setting", "value", "why"), tuple(chosen_rows(result)))


def _weights(result: CalibrationResult) -> str:
    return "mean Dice: " + ", ".join(f"{n} {t.dice:.3f}" for n, t in result.views.items())


def _judged(result: CalibrationResult) -> tuple[str, str, str]:
    """What the verdict goes by."""
    c = result.calibration
    if result.bundle.manifest.detector is not None and c.by_evidence:
        return "image score", "detector's peak", "parts normals and defects as well as the map's"
    return "image score", f"map, {c.image_sigma or 0:g} px", "smoothing that parts them best"


def _rate(result: CalibrationResult) -> str:
    how = "extrapolated" if result.reject.method == "tail" else "quantile"
    return f"false-reject rate {_percent(result.reject.expected_rate)}, {how}"


def _asides(result: CalibrationResult) -> str:
    """What to know of the images used."""
    sizes = result.normals.sizes
    warning, note = result.seen.warning, result.seen.note
    notes = [text for text in (warning and f"Warning: {warning}", note) if text]
    if len(sizes) > 1:
        notes.append(
            f"The normal images come in {len(sizes)} sizes, from {_size(sizes[0])} to "
            f"{_size(sizes[-1])}. Smoothing, opening and smallest area count pixels of each."
        )
    if result.normals.rejected:
        listed = "\n\n".join(reason for _, reason in result.normals.rejected[:10])
        notes.append(f"{len(result.normals.rejected)} images were set aside:\n\n{listed}")
    return "\n\n".join(notes)


def _sensitivity(result: CalibrationResult) -> Section:
    trials, name = result.tuning.trials, scalar_name(result) or "lambda"
    line = Line(
        "mean Dice, band: one standard deviation",
        [t.lam for t in trials],
        [t.dice for t in trials],
        [t.spread for t in trials],
    )
    plot = line_plot(
        [line],
        title=f"Sensitivity to {name}",
        x_label=name,
        y_label="Dice",
        log_x=True,
        mark=(result.lam, f"chosen: {result.lam:.4g}"),
    )
    rows = tuple(
        (f"{t.lam:.4g}", f"{t.dice:.3f}", f"{t.spread:.3f}", f"{t.sigma:g}", str(t.images))
        for t in trials
    )
    text = (
        "All values start on few images, and only those that may still win get more; each is "
        "shown at its own best smoothing and threshold. A broad plateau means that the "
        "choice hardly matters."
    )
    table = Table((name, "Dice", "spread", "smoothing px", "images"), rows)
    return Section(name.capitalize(), text, table, (Figure(plot, f"Dice over {name}"),), wide=True)


def _rejects(result: CalibrationResult) -> Section:
    plot = histogram(
        {"normal": result.normal_scores, "synthetic defects": result.defect_scores},
        title="Image scores",
        x_label="largest score in the image",
        mark=(result.calibration.image_threshold, "image threshold"),
    )
    empty = f"{_percent(result.clean_normals)} of the normal images have an empty mask."
    text = f"{rate_note(result)} {empty}"
    figures = (Figure(plot, "Image scores"),)
    return Section("Thresholds", text, _other_rates(result), figures, wide=True)


def _other_rates(result: CalibrationResult) -> Table:
    """What another false-reject rate would give."""
    rows = []
    for rate in sorted({0.1, 0.05, 0.01, 0.001, result.reject.expected_rate}, reverse=True):
        reject = reject_threshold(result.normal_scores, rate)
        caught = float((result.defect_scores > reject.value).mean())
        rows.append((_percent(rate), f"{reject.value:.4g}", reject.method, _percent(caught)))
    columns = ("false-reject rate", "image threshold", "by", "synthetic defects rejected")
    return Table(columns, tuple(rows))


def _kinds(result: CalibrationResult) -> Table:
    rows = tuple(
        (k.shape.replace("_", " "), k.fill, str(k.images), f"{k.dice:.3f}", _percent(k.detected))
        for k in result.kinds
    )
    return Table(("shape", "fill", "images", "Dice", "rejected"), rows)


def _example(example: Example) -> Figure:
    picture = draw_overlay(example.frame, example.mask, truth=example.truth)
    shape = example.shape.replace("_", " ")
    return Figure(png_bytes(picture), f"{shape}, {example.fill} colour: Dice {example.dice:.3f}")


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} px"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"
