"""Links between pages lead to files and headings that are there, on a forge as on the site."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from docs.pages import ROOT

_LINK = re.compile(r"\]\((?!\w+:)([^)\s]*)\)|<img [^>]*src=\"(?!\w+:)([^\"]+)\"")
_FENCED = r"^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence) *$"
_BLOCKS = re.compile(_FENCED, re.MULTILINE | re.DOTALL)
_CODE = re.compile(rf"{_FENCED}|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def markdown() -> list[Path]:
    """All pages, records included."""
    inside = [path for folder in ("docs", "examples", "recipes") for path in (ROOT / folder).rglob("*.md")]
    return sorted(path for path in [*ROOT.glob("*.md"), *inside] if "_build" not in path.parts)


@cache
def headings(path: Path) -> set[str]:
    """The anchors of a page's headings: lower case, hyphens for spaces, other marks left out; `-1` for a second one."""
    anchors: set[str] = set()
    text = _BLOCKS.sub("", path.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        same = sum(known == anchor or known.startswith(f"{anchor}-") for known in anchors)
        anchors.add(f"{anchor}-{same}" if anchor in anchors else anchor)
    return anchors


def broken(path: Path) -> Iterator[str]:
    """Links of a page that lead nowhere."""
    for found in _LINK.finditer(_CODE.sub("", path.read_text(encoding="utf-8"))):
        link = found[1] or found[2] or ""
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        is_there = target.exists() and target.is_relative_to(ROOT)
        if not is_there or (anchor and target.suffix == ".md" and anchor not in headings(target)):
            yield link


@pytest.mark.parametrize("path", markdown(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    assert list(broken(path)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.md").write_text("# One `thing`, and another\n\n## Same\n\n## Same\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md#one-thing-and-another) [b](#here) [c](other.md#same-1) `[d](no.md)` [e](https://a.b/c)\n"
        "[f](no.md) [g](other.md#two) [h](#there)\n```\n[i](no.md)\n```\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert list(broken(page)) == ["no.md", "other.md#two", "#there"]


def test_every_record_has_a_row_among_the_evidence() -> None:
    folder = ROOT / "docs" / "results"
    rows = re.findall(
        r"^\| \[[^\]]+\]\(([\w-]+\.md)\) \|", (folder / "index.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(rows) == sorted(path.name for path in folder.glob("*.md") if path.name != "index.md")
