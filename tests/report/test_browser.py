"""The page in a real browser, on a desk and on a phone: no errors, nothing missing, nothing wider than the screen."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_up_results import records_of, write_comparison, write_extended, write_lines

from skipwise.report.reading import read_evidence
from skipwise.report.report import Report


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


pytestmark = [
    pytest.mark.skipif(chromium() is None, reason="no chromium here to lay the page out"),
    pytest.mark.slow,
]

WIDTHS = (1280, 390)
# What the copy of the page without its policy tells of itself; a script is what the page itself forbids.
MEASURE = """<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message || event.target.outerHTML)), true);
addEventListener("load", () => {
  const root = document.documentElement, inScroll = element => element.closest(".scroll, svg");
  const right = element => element.getBoundingClientRect().right;
  parent.postMessage({
    width: innerWidth,
    scrollWidth: root.scrollWidth,
    errors,
    wide: [...document.body.querySelectorAll("*")].filter(e => !inScroll(e) && right(e) > innerWidth + 0.5)
      .map(e => e.tagName),
    drawings: document.querySelectorAll("svg").length,
    letters: Math.max(...[...document.querySelectorAll("svg")]
      .map(e => 9.5 * e.getBoundingClientRect().width / e.viewBox.baseVal.width)),
    body: parseFloat(getComputedStyle(document.body).fontSize),
    empty: [...document.querySelectorAll("svg, table, figcaption, h2")]
      .filter(e => e.getBoundingClientRect().width < 40 || e.getBoundingClientRect().height < 8).length,
    dangling: [...document.querySelectorAll("use")]
      .filter(e => !document.getElementById(e.getAttribute("xlink:href").slice(1))).length,
    headings: [...document.querySelectorAll("h2")].map(e => e.textContent),
    underlined: [...document.querySelectorAll(".effective")]
      .every(e => getComputedStyle(e).textDecorationLine === "underline"),
  }, "*");
});
</script>"""
FRAMES = """<title></title><script>
const told = [];
addEventListener("message", event => { told.push(event.data); document.title = JSON.stringify(told); });
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    sources = [write_comparison(folder / "c"), write_extended(folder / "small-4k")]
    Report.of(read_evidence(list(map(str, sources)))).write_page(folder / "report.html")
    return folder / "report.html"


def opened(path: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    """The document as chromium holds it after scripts, on stdout; what it logs, on stderr."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=5000"
    flags += " --enable-logging=stderr"
    command = [str(chromium()), *flags.split(), f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def told(page: Path) -> dict[int, dict[str, Any]]:
    """What copies of the page in frames of each width say of themselves."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', MEASURE.replace("\\", r"\\"), page.read_text())
    page.with_name("copy.html").write_text(html)
    frames = "".join(f'<iframe src="copy.html" style="width:{w}px;height:800px;border:0"></iframe>' for w in WIDTHS)
    page.with_name("frames.html").write_text(FRAMES + frames)
    dom = opened(page.with_name("frames.html"), page.parent / "profile").stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title
    assert title[1], "the frames told nothing"
    return {one["width"]: one for one in json.loads(unescape(title[1]))}


def test_the_page_fits_the_screen_and_lacks_nothing(page: Path) -> None:
    for width, found in told(page).items():
        assert found["scrollWidth"] <= width
        assert found["wide"] == []
        assert found["errors"] == []
        assert found["empty"] == 0
        assert found["dangling"] == 0
        assert found["underlined"]
        # 2 of perplexity, 5 of passkeys, 10 of needles, 4 of differences, 2 of costs, 4 of serving, 1 of tokens,
        # 1 of coverage.
        assert found["drawings"] == 29
        assert len(found["headings"]) == 16


def test_letters_of_drawings_are_no_larger_than_those_of_the_page(tmp_path: Path) -> None:
    """One arm at one length makes the narrowest heat map, and a line chart of the usual width beside it."""
    lines = [one for one in records_of("pose", kinds=()) if one["length_tokens"] == 256]
    source = write_lines(tmp_path / "one.jsonl", lines)
    Report.of(read_evidence([str(source)], original_tokens=256)).write_page(tmp_path / "report.html")
    found = told(tmp_path / "report.html")[1280]
    assert found["drawings"] == 6, "perplexity, passkeys, serving"
    assert 14 < found["letters"] <= found["body"]


def test_the_page_itself_logs_no_error(page: Path) -> None:
    log = opened(page, page.parent / "profile-of-page").stderr
    assert "CONSOLE" not in log, log
