"""One self-contained HTML page: no script, no link, no file beside it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

from unblemish import __version__
from unblemish.errors import MissingDependencyError

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; a column of nothing but numbers is set flush right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Per column, whether every cell is a number, a dash or empty."""
        return tuple(
            bool(self.rows) and all(_is_number(row[index]) for row in self.rows)
            for index in range(len(self.columns))
        )


@dataclass(frozen=True)
class Figure:
    """A PNG with a caption; `alt` is read aloud in its place (default: the caption)."""

    png: bytes
    caption: str
    alt: str = ""

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A part of the page; blank lines part paragraphs, `wide` figures fill a row each."""

    title: str
    text: str = ""
    table: Table | None = None
    figures: tuple[Figure, ...] = field(default=())
    wide: bool = False

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """The text, parted at blank lines."""
        return tuple(part.strip() for part in self.text.split("\n\n") if part.strip())


def render_page(title: str, lead: str, sections: list[Section] | tuple[Section, ...]) -> str:
    """Render the page. Everything given is text and escaped; nothing is read as HTML.

    Raises: MissingDependencyError where jinja2 is not installed.
    """
    return _template().render(title=title, lead=lead, sections=sections, version=__version__)


def report_available() -> bool:
    """Whether the packages of the extra 'report' that pages and plots need can be imported."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("jinja2", "matplotlib"))


def _template() -> jinja2.Template:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingDependencyError("jinja2", "report", "Writing an HTML report") from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = resources.files("unblemish.report").joinpath("templates/page.html").read_text("utf-8")
    return environment.from_string(text)


def _is_number(text: str) -> bool:
    bare = text.strip().rstrip("%").removesuffix(" ms").removesuffix(" px").strip()
    if bare in {"", "–", "-"}:
        return True
    try:
        float(bare.replace(",", ""))
    except ValueError:
        return False
    return True
