"""A report as one HTML file that needs nothing else: no network, no scripts, no fonts; for screens of any width, dark
or light, and for paper.

It says the verdict in words first, then shows section after section, and ends with how it was made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from skipwise.report.drawing import Figure
from skipwise.report.tables import Table
from skipwise.report.templates import TEMPLATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One thing that the page shows.

    Attributes:
        title: heading of the section.
        words: paragraphs, plain text.
        figures: what to look at.
        tables: the numbers behind it.
    """

    title: str
    words: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


def render_page(
    title: str, sections: Sequence[Section], path: Path, *, verdict: Sequence[str], made: Mapping[str, str]
) -> None:
    """Writes the page.

    Args:
        title: of the page.
        sections: in reading order.
        path: the HTML file to write; an older one is replaced.
        verdict: what was found, one sentence an entry.
        made: how the numbers came about, by name: the command, versions, seeds, time.
    """
    html = TEMPLATES.get_template("page.html").render(
        title=title, sections=sections, verdict=verdict, made=made, drawing=Markup
    )
    path.write_text(html, encoding="utf-8", errors="backslashreplace")
