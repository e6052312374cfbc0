"""Sections and verdict of a report, from made-up results of six arms."""

# ruff: noqa: RUF001 - intervals are written with an en dash

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up_results import (
    PERPLEXITIES,
    comparison,
    record,
    records_of,
    share,
    write_comparison,
    write_extended,
    write_lines,
)

from skipwise.records.results import EvalResult
from skipwise.report.evidence import Arm, Evidence, Measure
from skipwise.report.figures import Line, Point, axis_edges, dot_panel, line_panel
from skipwise.report.page import Section
from skipwise.report.quantities import bytes_text, seconds_text, signed_text
from skipwise.report.reading import read_evidence
from skipwise.report.report import Report
from skipwise.report.tables import markdown_text

SECRET = "The cat sat on the confidential mat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def evidence(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return read_evidence([str(folder), str(write_extended(tmp_path_factory.mktemp("models") / "small-4k"))])


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


def arm_of(name: str, lines: list[dict[str, Any]]) -> Arm:
    return Arm(name=name, results=[EvalResult(**line) for line in lines])


# Numbers


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 B"), (1.5 * 2**20, "1.50 MiB"), (80 * 2**30, "80.0 GiB"), (0, "0 B")]
)
def test_bytes_are_written_in_the_unit_that_suits_them(value: float, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "12.3 ms"), (0.9, "0.90 s"), (88.1, "88.1 s"), (1200, "20 min"), (9000, "2.5 h")]
)
def test_seconds_too(value: float, text: str) -> None:
    assert seconds_text(value) == text


def test_signs_are_written_and_nothing_has_none() -> None:
    assert [signed_text(value) for value in (4.21, -0.3, 0.04, -0.04)] == ["+4.2", "−0.3", "0.0", "0.0"]


def test_a_log_ratio_is_told_in_per_cent() -> None:
    measure = Measure("regression", "log_perplexity_ratio")
    assert measure.text(math.log(1.05)) == "+5.0%"
    line = record("regression", "log_perplexity_ratio", 256, math.log(1.05), math.log(0.99), math.log(1.11))
    assert measure.text_with_interval(EvalResult(**line)) == "+5.0% (−1.0 to +11.0%)"


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
    tables = section(report, "Retrieval by task and length").tables
    means = tables[0]
    assert {row[0]: row[-2] for row in means.rows} == {
        "base": "256",
        "interpolation only": "512",
        "pose": "4k",
        "pose, three chunks": "4k",
        "randpos": "512",
    }
    randpos = next(index for index, row in enumerate(means.rows) if row[0] == "randpos")
    assert [column for row, column in means.underlined if row == randpos and column < 6] == [2]
    assert re.search(r'<td class="effective">93% \(\d+–\d+%\)</td>', page)
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
    assert table.rows[0][-2] == "none"


def test_means_over_different_tasks_are_not_decided_and_still_shown() -> None:
    lines = [share("passkey", "accuracy", 256, 1.0), share("ruler_vt", "score", 512, 1.0)]
    found = Report.of(Evidence(arms=[arm_of("uneven", lines)], original_tokens=256))
    shown = section(found, "Retrieval by task and length")
    assert any("Not decided for uneven" in word for word in shown.words)
    assert [row[0] for row in shown.tables[0].rows] == ["passkey", "ruler vt"]


def test_differences_are_told_in_per_cent_and_points(report: Report) -> None:
    """By hand: 8.9 / 7.37 is 1.2076; 0.7 is 30 points below 1."""
    perplexity, accuracy = section(report, "Paired differences to pose").tables
    cells = {row[0]: row[-1] for row in perplexity.rows}
    assert cells["randpos"] == "+20.8 (+19.2 to +22.3)"
    assert {row[0]: row[-1] for row in accuracy.rows}["randpos"] == "−30.0 (−38.0 to −22.0)"


def dots(*points: tuple[float, float | None, float | None]) -> list[Line]:
    return [Line(name=f"arm {i}", index=i, points=[Point(256, *point)]) for i, point in enumerate(points)]


def test_an_arm_far_off_leaves_the_others_their_room() -> None:
    far = dots((2200, 2100, 2300), (2, 1, 3), (-4, -6, -2), (20, 18, 22))
    edges = axis_edges(far)
    assert edges is not None
    assert -12 < edges[0] < -6
    assert 22 < edges[1] < 30
    assert axis_edges(far[1:]) is None


def test_an_interval_with_one_end_is_none() -> None:
    panel = dot_panel(dots((2, 1, None), (3, None, 4), (4, 3, 5)), title="Perplexity", x_title="per cent")
    assert 'aria-label="Perplexity, per cent: arm 0 2; arm 1 3; arm 2 4 (3\N{EN DASH}5)."' in panel


def test_short_text_is_told_by_arm_and_its_untrained_twin(report: Report) -> None:
    (table,) = section(report, "What short text lost").tables
    cells = {row[0]: row[1:] for row in table.rows}
    # 8.75 / 8.4 is 1.0417.
    assert cells["pose"][0] == "+4.2% (+2.9 to +5.4%)"
    assert cells["pose: interpolation only"][0].startswith("+15.1%")
    assert cells["pose"][-1] == "94% (93–95%)"


def test_costs_by_target_mark_what_failed(report: Report) -> None:
    shown = section(report, "What training cost")
    table = shown.tables[1]
    assert {row[0]: row[-1] for row in table.rows} == {"pose": "0.94 s, 866 MiB", "full": "failed: out of memory"}
    time = shown.figures[0].panels[0]
    assert "full: 1k 1.1 s, 2k 2.3 s, 4k 4.6 s, 8k failed." in time
    assert "A cross marks" in shown.figures[0].caption


def test_runs_give_mean_time_and_largest_peak(report: Report) -> None:
    runs = {row[0]: row[1:] for row in section(report, "What training cost").tables[0].rows}
    assert runs["pose"] == ("2", "100", "409,600", "88.6 s", "858 MiB")
    assert runs["small-4k"] == ("1", "100", "–", "88.1 s", "870 MiB")
    assert "full" not in runs


def test_serving_is_told_by_length(report: Report) -> None:
    shown = section(report, "What serving costs")
    assert len(shown.figures[0].panels) == 4
    prefill, *_, peak = ({row[0]: row[1:] for row in table.rows} for table in shown.tables)
    assert prefill["pose"][0] == "51.9 ms"
    assert peak["pose"][-1] == "512 MiB"


def test_a_perplexity_never_reached_says_so(report: Report) -> None:
    (table,) = section(report, "Tokens to reach a perplexity").tables
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["pose"] == ("122,880", "122,880")
    assert cells["randpos"] == ("not reached", "not reached")


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


def test_failed_arms_are_named_with_the_reason(report: Report, page: str) -> None:
    (table,) = section(report, "What failed").tables
    assert table.rows == (("full", "0", "out of memory", "CUDA out of memory: tried to allocate 9 GiB"),)
    assert "1 of 6 arms failed: full (out of memory)." in report.verdict
    assert "tried to allocate 9 GiB" in page


def test_what_was_run_is_told_with_its_hashes(report: Report) -> None:
    assert report.made["documents, sha256"] == "d0c5" * 16
    assert report.made["tokenizer, sha256"] == "70ce" * 16
    assert report.made["seeds of training"] == "0, 1"
    assert "PoSE(chunks=2" in report.made["run small-4k"]


# The verdict


def test_the_verdict_is_first_about_the_best_arm_then_about_all_else(report: Report) -> None:
    assert report.verdict[0] == (
        "Perplexity at 4k tokens, 16 times the original window: 7.37 (6.85–7.96) for pose, the lowest; the next, "
        "“pose, three chunks”, has +1.1% (−0.2 to +2.4%), paired by document; 172 (160–186) for base."
    )
    assert report.verdict[1] == "The difference to pose may be nil at that length for “pose, three chunks”."
    assert (
        "4k for pose and “pose, three chunks”; 512 for interpolation only and randpos; 256 for base"
        in report.verdict[2]
    )
    assert "On short text, perplexity beside the base" in report.verdict[4]


def test_without_pairs_overlapping_intervals_are_not_told_apart() -> None:
    arms = [
        arm_of(name, [record("perplexity", "perplexity", 4096, value, value - 0.5, value + 0.5)])
        for name, value in (("a", 7.0), ("b", 7.4), ("c", 9.0))
    ]
    words = Report.of(Evidence(arms=arms, original_tokens=256)).verdict
    assert words[1] == "By their own intervals a is not told apart from b there."


def test_arms_with_the_same_number_are_the_lowest_together() -> None:
    arms = [
        arm_of(name, [record("perplexity", "perplexity", 4096, value, 6.0, 9.0)])
        for name, value in (("a", 7.001), ("b", 7.004), ("c", 8.0))
    ]
    words = Report.of(Evidence(arms=arms, original_tokens=256)).verdict
    assert words[0] == "Perplexity at 4k tokens, 16 times the original window: 7.00 for a and b, the lowest."


def test_different_documents_are_cautioned_against() -> None:
    arms = [
        arm_of(name, [record("perplexity", "perplexity", 256, 9.0, None, None, documents_sha256=name * 8)])
        for name in ("a", "b")
    ]
    assert any("same documents" in word for word in Report.of(Evidence(arms=arms, original_tokens=256)).verdict)


def test_nothing_is_said_where_nothing_was_measured() -> None:
    (word,) = Report.of(Evidence(arms=[], original_tokens=256)).verdict
    assert word.startswith("Nothing was measured")


# What must never happen


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
        assert "x" * 201 not in (tmp_path / "r.html").read_text()


HOSTILE = "<script>alert(1)</script>\"'&$\\frac{|\x07\n--><img src=x onerror=1>"


@pytest.mark.slow
def test_hostile_names_stay_names(tmp_path: Path) -> None:
    changed = comparison()
    changed["arms"][HOSTILE] = changed["arms"].pop("pose")
    for entry in (*changed["differences"], *changed["costs"], *changed["reached"]):
        entry |= {"arm": HOSTILE} if entry["arm"] == "pose" else {}
    changed["made"] = {HOSTILE: HOSTILE}
    changed["arms"]["full"]["runs"][0]["error"] = HOSTILE
    changed["reference"] = HOSTILE
    folder = write_comparison(tmp_path / "c", changed, kinds=())
    write_lines(folder / "records.jsonl", list(records_of("pose", kinds=())), compared=HOSTILE)
    made = Report.of(read_evidence([str(folder)]), title=HOSTILE)
    made.write_page(tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "<script" not in html
    assert "<img" not in html
    for one in made.sections:
        for figure in one.figures:
            for panel in figure.panels:
                ElementTree.fromstring(panel)
    assert not re.search(r"<(?!/?ins>)", made.markdown())
    assert all(line.count("|") >= 2 for line in made.markdown().splitlines() if line.startswith("| &lt;"))


def test_markdown_text_has_no_markup_of_its_own() -> None:
    assert markdown_text("a *b* <c> [d](e)\n# f") == "a \\*b\\* &lt;c> \\[d\\](e) \\# f"


def test_fifteen_arms_stay_readable() -> None:
    """All are in the key, bands are left away, and tables have a row for each."""
    lines = [one for one in records_of("pose", kinds=()) if one["task"] == "perplexity"]
    arms = [arm_of(f"arm {number}", lines) for number in range(15)]
    made = Report.of(Evidence(arms=arms, original_tokens=256))
    shown = section(made, "Perplexity by length")
    assert [row[0] for row in shown.tables[0].rows] == [arm.name for arm in arms]
    assert "Intervals are in the table" in shown.figures[0].caption
    assert made.verdict[0].startswith("Perplexity at 4k tokens")
    assert "and 9 more" in made.verdict[1] or "and 8 more" in made.verdict[1]


def test_a_line_that_failed_everywhere_is_still_in_the_key() -> None:
    lines = [Line(name="a", index=0, points=[Point(256, 1.0)]), Line(name="b", index=1, points=[], failed=[256])]
    assert "b: 256 failed." in line_panel(lines, title="Time", text=seconds_text)


def test_the_same_evidence_gives_the_same_page(evidence: Evidence, page: str, tmp_path: Path) -> None:
    small = dataclasses.replace(evidence, arms=evidence.arms[:1], comparison=None, runs=())
    for name in ("a", "b"):
        Report.of(small).write_page(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(page) < 4_000_000
