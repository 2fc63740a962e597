"""Plots as PNG bytes. Matplotlib's objects are used directly: no global state, no display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from unblemish.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with every kind of colour vision, in print, on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_INK = "#1d2226"


@dataclass(frozen=True)
class Line:
    """One curve; `spread` (same length as `y`, same unit) is drawn as a band y ± spread."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


def line_plot(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    mark: tuple[float, str] | None = None,
) -> bytes:
    """Draw curves and a vertical `mark` (x, label), e.g. the value chosen. Returns PNG."""
    figure, axes = _canvas(title, x_label, y_label)
    for line, colour in zip(lines, _cycle(len(lines)), strict=True):
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        axes.plot(x, y, color=colour, label=line.label, marker="o" if x.size <= 40 else None, ms=4)
        if line.spread is not None:
            spread = np.asarray(line.spread, float)
            axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    return _finish(figure, axes, mark, legend=len(lines) > 1)


def histogram(
    groups: Mapping[str, ArrayLike],
    *,
    title: str,
    x_label: str,
    y_label: str = "count",
    bins: int = 40,
    log_y: bool = False,
    mark: tuple[float, str] | None = None,
) -> bytes:
    """Draw histograms over one set of bins, finite values only. Returns PNG."""
    values = {name: np.asarray(group, float).ravel() for name, group in groups.items()}
    values = {name: group[np.isfinite(group)] for name, group in values.items()}
    filled = [group for group in values.values() if group.size]
    edges = np.histogram_bin_edges(np.concatenate(filled) if filled else np.zeros(1), bins)
    figure, axes = _canvas(title, x_label, y_label)
    for (name, group), colour in zip(values.items(), _cycle(len(values)), strict=True):
        axes.hist(group, bins=list(edges), color=colour, alpha=0.55, label=f"{name} ({group.size})")
    if log_y:
        axes.set_yscale("log")
    else:
        axes.locator_params(axis="y", integer=True)
    return _finish(figure, axes, mark, legend=True)


def bar_plot(
    labels: Sequence[str],
    groups: Mapping[str, Sequence[float]],
    *,
    title: str,
    y_label: str,
) -> bytes:
    """Draw bars, one cluster per label and one colour per group. Returns PNG."""
    figure, axes = _canvas(title, "", y_label)
    width = min(0.25, 0.8 / max(len(groups), 1))
    base = np.arange(len(labels), dtype=float)
    for index, (name, heights) in enumerate(groups.items()):
        offset = (index - (len(groups) - 1) / 2) * width
        bars = axes.bar(
            base + offset, list(heights), width * 0.92, label=name, color=COLOURS[index % 7]
        )
        axes.bar_label(bars, fmt="%.3g", fontsize=8, color=_INK, padding=2)
    axes.set_xticks(base, list(labels))
    axes.margins(y=0.12)
    axes.set_xlim(-0.6, max(len(labels), 3) - 0.4)
    axes.grid(axis="x", visible=False)
    return _finish(figure, axes, None, legend=len(groups) > 1)


def _canvas(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError("matplotlib", "report", "Drawing a plot") from error
    figure = Figure(figsize=(7.2, 4.0), dpi=144, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=_INK)
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e6e8", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _finish(figure: Figure, axes: Axes, mark: tuple[float, str] | None, *, legend: bool) -> bytes:
    if mark is not None:
        axes.axvline(mark[0], color=_INK, linewidth=1.2, linestyle="--", label=mark[1])
    if legend or mark is not None:
        handles, labels = axes.get_legend_handles_labels()
        columns = min(len(labels), 5)
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )
    stream = io.BytesIO()
    # No date and no version: equal numbers give equal bytes.
    metadata: dict[str, Any] = {"Software": None}
    figure.savefig(stream, format="png", metadata=metadata)
    return stream.getvalue()


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
