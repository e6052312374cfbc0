"""A report from made-up results of six arms: how numbers are written, its sections, its verdict, its page."""

# ruff: noqa: RUF001 - intervals are written with an en dash

import dataclasses
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up_results import (
    PERPLEXITIES,
    arm_of,
    comparison,
    record,
    records_of,
    share,
    write_comparison,
    write_extended,
    write_lines,
)
from rich.console import Console

from skipwise.records.results import EvalResult
from skipwise.report.evidence import PASSKEY, PERPLEXITY, Arm, Evidence, Measure
from skipwise.report.page import Section
from skipwise.report.quantities import bytes_text, seconds_text, signed_text
from skipwise.report.reading import read_evidence
from skipwise.report.report import Report
from skipwise.report.tables import Table, markdown_text, results_table, table_of

SECRET = "The cat sat on the confidential mat"
HOSTILE = "<script>alert(1)</script>\"'&$\\frac{|\x07\n--><img src=x onerror=1>"


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    folder = tmp_path_factory.mktemp("models")
    return read_evidence([str(write_comparison(folder / "c")), str(write_extended(folder / "small-4k"))])


@pytest.fixture(scope="module")
def report(evidence: Evidence) -> Report:
    return Report.of(evidence)


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "r.html"
    report.write_page(path)
    return path.read_text()


def section(report: Report, title: str) -> Section:
    return next(one for one in report.sections if one.title == title)


def cells(table: Table) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


def perplexities(**arms: float) -> list[Arm]:
    """Arms measured at 4096 tokens alone, with intervals of half a perplexity each way."""
    return [
        arm_of(name, [record("perplexity", "perplexity", 4096, value, value - 0.5, value + 0.5)])
        for name, value in arms.items()
    ]


# Numbers, and tables of them


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (PERPLEXITY.text, {8.13: "8.13", 94.8: "94.8", 2083.9: "2,084", 0.0: "0"}),
        (PASSKEY.text, {0.856: "86%"}),
        (bytes_text, {512: "512 B", 1.5 * 2**20: "1.50 MiB", 80 * 2**30: "80.0 GiB", 0: "0 B"}),
        (seconds_text, {0.0123: "12.3 ms", 0.9: "0.90 s", 88.1: "88.1 s", 1200: "20 min", 9000: "2.5 h"}),
        (signed_text, {4.21: "+4.2", -0.3: "−0.3", 0.04: "0.0", -0.04: "0.0"}),
        (Measure("regression", "log_perplexity_ratio").text, {math.log(1.05): "+5.0%"}),
    ],
)
def test_numbers_are_written_as_people_read_them(write: Callable[[float], str], texts: dict[float, str]) -> None:
    assert {value: write(value) for value in texts} == texts


def test_intervals_are_written_after_their_value() -> None:
    ratio = record("regression", "log_perplexity_ratio", 256, math.log(1.05), math.log(0.99), math.log(1.11))
    for line, text in (
        (record("passkey", "accuracy", 8, 0.8, 0.7, 0.88), "80% (70–88%)"),
        (ratio, "+5.0% (−1.0 to +11.0%)"),
        (record("passkey", "accuracy", 8, 0.8, None, None), "80%"),
        # Of two texts, by Student's distribution: it says nothing.
        (record("perplexity", "perplexity", 8, 4.09, 1.0, 162_111.0, 2), "4.09"),
        (record("perplexity", "perplexity", 8, 4.09, 1.0, 900.0, 2), "4.09 (1.00–900)"),
    ):
        result = EvalResult(**line)
        assert Measure.of(result).text_with_interval(result) == text


@pytest.mark.parametrize(("task", "title"), [("perplexity", "Perplexity"), ("sliding", "Sliding perplexity")])
def test_a_title_says_nothing_twice(task: str, title: str) -> None:
    assert Measure(task, "perplexity").title == title


def test_tables_hold_whole_inputs_only_and_mark_what_was_not_measured() -> None:
    lines = list(records_of("pose", kinds=()))
    again = record("perplexity", "perplexity", 256, 9.0, None, None)
    short, whole = arm_of("short", lines[:1]), arm_of("whole", [*lines, again])
    table = table_of([short, whole], PERPLEXITY)
    assert table.header == ("Tokens", "short", "whole")
    assert table.rows[0] == ("256", "8.75 (8.14–9.45)", "9.00"), "the later of two records counts"
    assert table.rows[4] == ("4k", "–", "7.37 (6.85–7.96)")
    assert [row[0] for row in table_of([whole], PASSKEY).rows] == ["256", "512", "1k", "2k", "4k"]


@pytest.mark.parametrize("number", [3, 15])
def test_the_terminal_table_fits_eighty_columns_and_takes_names_literally(number: int) -> None:
    lines = [one for one in records_of("pose", kinds=()) if one["task"] in ("perplexity", "passkey")]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table([arm_of(f"[i]{n}", lines) for n in range(number)]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "7.37" in text
    assert "accuracy" in text
    # A column for few arms; for many a row each, of perplexity and of passkeys, below the lengths of each.
    assert all(len(re.findall(rf"\[i\]{n}\b", text)) == (1 if number == 3 else 2) for n in range(number))
    heads = [line.split()[-5:] for line in text.splitlines() if line.split()[-1:] == ["4k"]]
    assert heads == ([] if number == 3 else [["256", "512", "1k", "2k", "4k"]] * 2)


def test_text_in_markdown_has_no_markup_of_its_own() -> None:
    table = Table(title="", header=("a", "b"), rows=(("x|y", "<b>\nz"),))
    assert table.markdown().splitlines()[2] == "| x\\|y | &lt;b> z |"
    assert markdown_text("a *b* <c> [d](e)\n# f") == "a \\*b\\* &lt;c> \\[d\\](e) \\# f"
    assert markdown_text("run `eval a_b --task *` of ``<c>` d_e") == "run `eval a_b --task *` of \\`\\`&lt;c>\\` d\\_e"


# Sections


def test_all_sections_come_in_reading_order(report: Report) -> None:
    assert [one.title for one in report.sections] == [
        "Perplexity by length",
        "Passkeys found by length and depth",
        "Needles found by length and depth",
        "Retrieval by task and length",
        "Paired differences to pose",
        "What short text lost",
        "What training cost",
        "What serving costs",
        "Tokens to reach a perplexity",
        "Which distances were trained",
        "What failed",
        "What was run",
    ]


def test_what_was_not_measured_has_no_section(tmp_path: Path) -> None:
    only = write_lines(tmp_path / "a.jsonl", [record("perplexity", "perplexity", 256, 9.0, None, None)])
    found = Report.of(read_evidence([str(only)], original_tokens=256))
    assert [one.title for one in found.sections] == ["Perplexity by length", "What was run"]
    assert found.verdict == ["Perplexity at 256 tokens: 9.00 for a."]


def test_every_kind_of_needle_has_a_figure_with_every_arm(report: Report) -> None:
    figures = section(report, "Needles found by length and depth").figures
    assert [figure.title for figure in figures] == ["Single", "Multi value"]
    assert all(len(figure.panels) == len(PERPLEXITIES) for figure in figures)


def test_the_effective_length_is_underlined(page: str, report: Report) -> None:
    """Randpos has a mean of 0.93 at 512 and of 0.88 at 1k, whose lower end is below 0.856."""
    means = section(report, "Retrieval by task and length").tables[0]
    assert means.header[1:4] == ("RULER's rule", "Relative rule", "256"), "what is decided is not cut off on a phone"
    assert {name: row[0] for name, row in cells(means).items()} == {
        "base": "256",
        "interpolation only": "512",
        "pose": "4k",
        "pose, three chunks": "4k",
        "randpos": "512",
    }
    randpos = list(cells(means)).index("randpos")
    assert [column for row, column in means.underlined if row == randpos and column > 1] == [4]
    assert re.search(r'<td class="effective">93% <span class="unbroken">\(\d+–\d+%\)</span></td>', page)
    assert re.search(r'<th scope="col" class="effective">4k</th>', page)
    css = re.search(r"\.effective \{([^}]*)\}", page)
    assert css
    assert "text-decoration: underline" in css[1]
    assert "<ins>4k</ins>" in report.markdown()


def test_an_arm_that_never_holds_has_nothing_underlined() -> None:
    weak = arm_of("weak", [share("passkey", "accuracy", length, 0.2) for length in (256, 512)])
    found = Report.of(Evidence(arms=[weak], original_tokens=256))
    (table,) = section(found, "Retrieval by task and length").tables
    assert not table.underlined
    assert table.rows[0][1] == "none"


def test_means_over_different_tasks_are_not_decided_and_still_shown() -> None:
    lines = [share("passkey", "accuracy", 256, 1.0), share("ruler_vt", "score", 512, 1.0)]
    shown = section(
        Report.of(Evidence(arms=[arm_of("uneven", lines)], original_tokens=256)), "Retrieval by task and length"
    )
    assert any("Not decided for uneven" in word for word in shown.words)
    assert [row[0] for row in shown.tables[0].rows] == ["passkey", "ruler vt"]


@pytest.mark.parametrize(
    ("title", "table", "arm", "expected"),
    [
        # By hand: 8.9 / 7.37 is 1.2076; 0.7 is 30 points below 1; 8.75 / 8.4 is 1.0417.
        ("Paired differences to pose", 0, "randpos", {-1: "+20.8 (+19.2 to +22.3)"}),
        ("Paired differences to pose", 1, "randpos", {-1: "−30.0 (−38.0 to −22.0)"}),
        ("What short text lost", 0, "pose", {0: "+4.2% (+2.9 to +5.4%)", -1: "94% (93–95%)"}),
        ("What short text lost", 0, "pose: interpolation only", {0: "+15.1% (+13.7 to +16.5%)"}),
        ("What training cost", 0, "pose", dict(enumerate(("2", "100", "409,600", "88.6 s", "858 MiB")))),
        ("What training cost", 0, "small-4k", dict(enumerate(("1", "100", "–", "88.1 s", "870 MiB")))),
        ("What training cost", 1, "pose", {-1: "0.94 s, 866 MiB"}),
        ("What training cost", 1, "full", {-1: "failed: out of memory"}),
        ("What serving costs", 0, "pose", {0: "51.9 ms"}),
        ("What serving costs", 3, "pose", {-1: "512 MiB"}),
        ("Tokens to reach a perplexity", 0, "pose", {0: "122,880", 1: "122,880"}),
        ("Tokens to reach a perplexity", 0, "randpos", {0: "not reached", 1: "not reached"}),
        ("What failed", 0, "full", {0: "0", 1: "out of memory", 2: "CUDA out of memory: tried to allocate 9 GiB"}),
    ],
)
def test_tables_have_the_numbers(report: Report, title: str, table: int, arm: str, expected: dict[int, str]) -> None:
    row = cells(section(report, title).tables[table])[arm]
    assert {column: row[column] for column in expected} == expected


def test_costs_by_target_mark_what_failed(report: Report) -> None:
    shown = section(report, "What training cost")
    assert "full" not in cells(shown.tables[0])
    assert "full: 1k 1.1 s, 2k 2.3 s, 4k 4.6 s, 8k failed." in shown.figures[0].panels[0]
    assert "A cross marks" in shown.figures[0].caption
    assert len(section(report, "What serving costs").figures[0].panels) == 4


def test_samplers_that_are_the_same_are_one_curve(report: Report) -> None:
    table = section(report, "Which distances were trained").tables[0]
    assert [row[:2] for row in table.rows] == [
        ("pose, small-4k", "pose, 2 chunks, flat"),
        ("pose, three chunks", "pose, 3 chunks, flat"),
        ("randpos", "randpos"),
        ("full", "full"),
    ]
    assert table.rows[3][2] == "100%"


def test_a_sampler_of_the_callers_own_is_not_drawn(tmp_path: Path) -> None:
    folder = write_extended(tmp_path / "m")
    run = json.loads((folder / "skipwise.json").read_text())
    (folder / "skipwise.json").write_text(json.dumps(run | {"sampler": "MyOwn"}))
    line = write_lines(tmp_path / "a.jsonl", [record("perplexity", "perplexity", 256, 9.0, None, None)])
    found = Report.of(read_evidence([str(folder), str(line)]))
    assert "Which distances were trained" not in [one.title for one in found.sections]


def test_what_was_run_is_told_with_its_hashes(report: Report) -> None:
    assert report.made["documents, sha256"] == "d0c5" * 16
    assert report.made["tokenizer, sha256"] == "70ce" * 16
    assert report.made["seeds of training"] == "0, 1"
    assert "PoSE(chunks=2" in report.made["run small-4k"]


# The verdict


def test_the_verdict_is_first_about_the_best_arm_then_about_all_else(report: Report) -> None:
    assert report.verdict[0] == (
        "Perplexity at 4k tokens, 16 times the original window: 7.37 (6.85–7.96) for pose, the lowest; −1.1% "
        "(−2.4 to +0.2%) against “pose, three chunks”, paired by document; 172 (160–186) for base."
    )
    for number, words in (
        (1, "to pose contains zero at that length for “pose, three chunks”"),
        (2, "4k for pose and “pose, three chunks”; 512 for interpolation only and randpos; 256 for base"),
        (3, "A training run took 88.6 s"),
        (-1, "1 of 6 arms failed: full (out of memory)."),
    ):
        assert words in report.verdict[number]


ON_DIFFERENT_DOCUMENTS = [
    arm_of(name, [record("perplexity", "perplexity", 256, 9.0, None, None, documents_sha256=name * 8)])
    for name in ("a", "b")
]


@pytest.mark.parametrize(
    ("arms", "place", "words"),
    [
        # Without pairs, overlapping intervals are not told apart.
        (perplexities(a=7.0, b=7.4, c=9.0), 1, "do not separate a from b"),
        (perplexities(a=7.001, b=7.004, c=8.0), 0, ": 7.00 for a and b, the lowest."),
        (ON_DIFFERENT_DOCUMENTS, -1, "same documents"),
        ([], 0, "Nothing was measured"),
    ],
)
def test_the_verdict_says_no_more_than_the_numbers_do(arms: list[Arm], place: int, words: str) -> None:
    verdict = Report.of(Evidence(arms=arms, original_tokens=256)).verdict
    assert words in verdict[place]
    assert len(verdict) == 1 or arms


def test_fifteen_arms_stay_readable() -> None:
    """All are in the legend, bands are left away, and tables have a row for each."""
    lines = [one for one in records_of("pose", kinds=()) if one["task"] == "perplexity"]
    arms = [arm_of(f"arm {number}", lines) for number in range(15)]
    made = Report.of(Evidence(arms=arms, original_tokens=256))
    shown = section(made, "Perplexity by length")
    assert list(cells(shown.tables[0])) == [arm.name for arm in arms]
    assert "Intervals are in the table" in shown.figures[0].caption
    assert "and 9 more" in made.verdict[0]


# The page


class Outline(HTMLParser):
    """What a reader of the page meets: its tags, links and headings."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] in (["h1"], ["h2"]) and data.strip():
            self.headings.append(data)


def test_the_page_is_one_file_that_asks_for_nothing(page: str, report: Report) -> None:
    outline = Outline(page)
    decision = report.decision
    assert decision
    assert outline.headings[:2] == ["From 256 to 4k tokens", decision.headline]
    assert outline.headings[2:5] == ["The numbers behind it", "In detail", "Perplexity by length"]
    assert outline.headings[-1] == "How this was made"
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    links = [value for name, value in outline.attributes if name in ("src", "href", "xlink:href")]
    assert all(value and value.startswith("#") for value in links)
    assert not re.search(r"@import|url\((?!#)", page)
    assert (
        outline.tags.count("figure") == outline.tags.count("figcaption") == sum(len(s.figures) for s in report.sections)
    )
    assert (
        outline.tags.count("table")
        == outline.tags.count("caption")
        == sum(map(len, [report.decisive, *(s.tables for s in report.sections)]))
    )
    assert len(page) < 4_000_000


def test_the_same_evidence_gives_the_same_page(evidence: Evidence, tmp_path: Path) -> None:
    small = dataclasses.replace(evidence, arms=evidence.arms[:1], comparison=None, runs=())
    for name in ("a", "b"):
        Report.of(small).write_page(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_text_of_documents_or_outputs_enters_unless_asked_for(tmp_path: Path) -> None:
    hidden = {"text": SECRET, "settings": {"question": SECRET * 5, "depths": [SECRET]}, "output": SECRET}
    lines = [one | {"details": one["details"] | hidden} for one in records_of("pose", kinds=["single"])]
    source = write_lines(tmp_path / "a.jsonl", lines)
    sample = {"task": "passkey", "length_tokens": 256, "output": SECRET, "answer": "12345"}
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps(sample) + "\n" + json.dumps(sample | {"output": "x" * 900, "length_tokens": 512}))
    for asked in (None, samples):
        made = Report.of(read_evidence([str(source)], original_tokens=256, samples=asked))
        for write, path in ((made.write_page, tmp_path / "r.html"), (made.write_csv, tmp_path / "r.csv")):
            write(path)
            assert (SECRET in path.read_text()) == (asked is not None and path.suffix == ".html")
        assert (SECRET in made.markdown()) == (asked is not None)
        page = (tmp_path / "r.html").read_text()
        assert "x" * 201 not in page
        assert ("at most 6, cut after 200 characters" in page) == (asked is not None)


def test_names_title_and_making_are_escaped(tmp_path: Path) -> None:
    """Of the page and of its drawings; the next test has the other ways in."""
    name = "<script>alert(1)</script>\"'&$\\frac{1$ -->"
    lines = [record("perplexity", "perplexity", length, 9.0, 8.5, 9.5) for length in (256, 512)]
    made = Report.of(Evidence(arms=[arm_of(name, lines)], original_tokens=256), title=name, made={name: name})
    made.write_page(tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)") > 4, "title, heading, table and how it was made"
    panels = [panel for one in made.sections for figure in one.figures for panel in figure.panels]
    assert panels
    for panel in panels:
        root = ElementTree.fromstring(panel)
        assert name in "".join([*root.itertext(), *filter(None, (root.get("aria-label"),))])


@pytest.mark.slow
def test_hostile_names_stay_names(tmp_path: Path) -> None:
    changed: dict[str, Any] = comparison()
    changed["arms"] = {HOSTILE: changed["arms"]["pose"], "full": changed["arms"]["full"]}
    changed["arms"]["full"]["runs"][0]["error"] = HOSTILE
    for name in ("differences", "costs", "reached"):
        changed[name] = [entry | {"arm": HOSTILE} for entry in changed[name] if entry["arm"] in ("pose", "base")]
    folder = write_comparison(tmp_path / "c", {**changed, "made": {HOSTILE: HOSTILE}, "reference": HOSTILE}, kinds=())
    write_lines(tmp_path / "hostile", list(records_of("pose", kinds=())), compared=HOSTILE).replace(
        folder / "records.jsonl"
    )
    made = Report.of(read_evidence([str(folder)]), title=HOSTILE)
    made.write_page(tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "<script" not in html
    assert "<img" not in html
    for panel in [panel for one in made.sections for figure in one.figures for panel in figure.panels]:
        ElementTree.fromstring(panel)
    assert not re.search(r"<(?!/?ins>)", made.markdown())
    assert all(line.count("|") >= 2 for line in made.markdown().splitlines() if line.startswith("| &lt;"))


def test_a_report_needs_no_model_library(fresh_python: Callable[[str], None]) -> None:
    fresh_python(
        "import sys, skipwise.report.report\nassert not {'torch', 'transformers', 'matplotlib.pyplot'} & {*sys.modules}"
    )


def test_a_run_over_a_mixture_tells_what_was_drawn_from_which_source(tmp_path: Path) -> None:
    record_file = write_extended(tmp_path / "mixed-4k") / "skipwise.json"
    record = json.loads(record_file.read_text())
    numbers = {"windows": 1600, "tokens": 409600, "of_tokens": 100000, "documents": 12, "epochs": 133.33, "labels": 0.4}
    drawn = {"source": "docs | <b>", "replay": False, "share": 0.625, **numbers}
    record["corpus"]["sources"] = [drawn, {"source": "docs (replay)", "share": 0.1}]
    record_file.write_text(json.dumps(record))
    results = write_lines(tmp_path / "r.jsonl", [share("passkey", "accuracy", 4096, 0.5)])
    tables = [
        each
        for one in Report.of(read_evidence([str(record_file.parent), str(results)])).sections
        for each in one.tables
    ]
    (trained,) = [one for one in tables if one.title == "Completed training runs"]
    assert [row[trained.header.index("Tokens")] for row in trained.rows] == ["409,600"]
    (found,) = [one for one in tables if one.title == "What was drawn from which source"]
    assert found.rows == (
        ("mixed-4k", "docs | <b>", "62.5%", "1,600", "409,600", "100,000", "12", "133.33", "40%"),
        ("mixed-4k", "docs (replay)", "10.0%", *["–"] * 6),
    )
