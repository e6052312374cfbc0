"""A report as one HTML file without network, scripts or fonts: for screens of any width, dark or light, and for paper.

It begins with what to decide, if that can be told, and the verdict in words. Sections and how it was made follow.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup, escape

from skipwise.report.tables import CODE, Table

if TYPE_CHECKING:
    from skipwise.report.decision import Decision

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(["html"], default_for_string=False),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def _with_code(text: str) -> Markup:
    """Text in which what stands between backticks is code."""
    parts = re.split(CODE, text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part[1:-1]) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


TEMPLATES.filters["code"] = _with_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One or more drawings side by side, which wrap under one another where the screen is narrow.

    Attributes:
        caption: what is shown and how to read it.
        panels: SVG elements, each complete in itself and safe to put into HTML.
        title: a heading of its own, where a section has several.
    """

    caption: str
    panels: tuple[str, ...]
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One subject of the page.

    Attributes:
        title: heading of the section.
        words: paragraphs, plain text.
        figures: in reading order.
        tables: the numbers behind the figures.
    """

    title: str
    words: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


def render_page(
    title: str,
    sections: Sequence[Section],
    path: Path,
    *,
    verdict: Sequence[str],
    made: Mapping[str, str],
    decision: "Decision | None" = None,
    decisive: Sequence[Table] = (),
) -> None:
    """Writes the page.

    Args:
        title: of the page.
        sections: in reading order.
        path: the HTML file to write; an older one is replaced.
        verdict: the findings, one sentence an entry.
        made: how the numbers came about, by name: the command, versions, seeds, time.
        decision: what to do, for the top of the page; None where there is nothing to decide.
        decisive: the numbers that it rests on, below it.
    """
    html = TEMPLATES.get_template("page.html").render(
        title=title,
        sections=sections,
        verdict=verdict,
        made=made,
        decision=decision,
        decisive=decisive,
        drawing=Markup,
    )
    path.write_text(html, encoding="utf-8", errors="backslashreplace")
