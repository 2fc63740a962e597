"""The HTML page and the plots in it."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from unblemish.errors import MissingDependencyError
from unblemish.images import decode_image
from unblemish.report.page import Figure, Section, Table, render_page
from unblemish.report.plots import Line, bar_plot, histogram, line_plot

PNG = b"\x89PNG\r\n\x1a\n"


def test_page_escapes_everything_it_is_given() -> None:
    evil = "<script>alert('x')</script>"
    page = render_page(
        evil,
        evil,
        [Section(evil, evil, Table((evil,), ((evil,),), evil), (Figure(PNG, evil, f'"{evil}'),))],
    )
    assert "<script" not in page
    assert '""' not in re.sub(r'=""', "", page.split("</style>")[1].replace('alt="&#34;', ""))


def test_page_is_self_contained_and_speaks_to_screen_readers() -> None:
    page = render_page("Title", "Lead.", [Section("A", figures=(Figure(PNG, "a curve"),))])
    assert 'alt="a curve"' in page
    assert '<html lang="en">' in page
    assert not re.search(r"https?://|<script|<link", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_table_sets_numbers_flush_right() -> None:
    table = Table(("name", "share", "time"), (("a", "0.5", "3 ms"), ("b", "–", "4 ms")))
    assert table.numeric == (False, True, True)


def test_text_is_parted_into_paragraphs_at_blank_lines() -> None:
    assert Section("A", "one\nstill one\n\n two ").paragraphs == ("one\nstill one", "two")


def test_page_without_jinja2_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"unblemish\[report\]"):
        render_page("Title", "", [])


def test_plots_without_matplotlib_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"unblemish\[report\]"):
        line_plot([Line("a", [1, 2], [1, 2])], title="", x_label="", y_label="")


def test_plots_are_png_and_the_same_each_time(rng: np.random.Generator) -> None:
    groups = {"normal": rng.normal(size=50), "odd": [1.0, np.nan, np.inf], "none": []}

    def draw() -> list[bytes]:
        curve = Line("Dice", [0.1, 1, 10], [0.5, 0.8, 0.6], [0.1, 0.1, 0.1])
        return [
            line_plot([curve], title="t", x_label="x", y_label="y", log_x=True, mark=(1, "chosen")),
            histogram(groups, title="t", x_label="x", mark=(0.5, "threshold"), log_y=True),
            bar_plot(["a", "b"], {"one": [1, 2], "two": [3, 4]}, title="t", y_label="y"),
        ]

    first = draw()
    assert first == draw()
    for png in first:
        assert decode_image(png).shape == (576, 1036, 3)


def test_overlays_load_neither_matplotlib_nor_jinja2() -> None:
    code = (
        "import sys, unblemish.report.overlay, unblemish.report.page, unblemish.report.plots\n"
        "sys.exit(','.join(n for n in ('matplotlib', 'jinja2') if n in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
