"""Reports: numbers as people read them, figures that keep their promises, one self-contained page, honest model cards.

All numbers here are made up.
"""

# ruff: noqa: RUF001 - intervals are written with an en dash

import io
import itertools
import math
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb
from rich.console import Console

from skipwise.records.results import EvalResult
from skipwise.records.verdict import Verdict
from skipwise.report import drawing
from skipwise.report.drawing import COLOURS, relative_luminance
from skipwise.report.evidence import PASSKEY, PERPLEXITY, Arm, Evidence, Measure
from skipwise.report.figures import SHARE_COLOURS, depth_grid, perplexity_by_length
from skipwise.report.model_card import write_model_card
from skipwise.report.report import Report
from skipwise.report.tables import Table, results_table, table_of
from skipwise.window import Window, length_label, parse_length

LENGTHS = (256, 512, 1024, 2048, 4096)
SVG = "{http://www.w3.org/2000/svg}"
PAPERS = ("#ffffff", "#15181c")  # light and dark, as in page.html


Result = partial(EvalResult, num_samples=50)


def write_report(path: Path, arms: list[Arm], *, title: str, original_tokens: int, made: dict[str, str]) -> None:
    Report.of(Evidence(arms=arms, original_tokens=original_tokens), title=title, made=made).write_page(path)


def perplexities(*values: float) -> list[EvalResult]:
    return [
        Result(task="perplexity", metric="perplexity", length_tokens=n, value=v, ci_low=v * 0.93, ci_high=v * 1.07)
        for n, v in zip(LENGTHS, values, strict=True)
    ]


def passkeys(*shares: float) -> list[EvalResult]:
    """The share over all depths and at each of five, better towards the end."""
    results = []
    for length, share in zip(LENGTHS, shares, strict=True):
        cells = [round(min(1.0, share * (0.6 + 0.2 * band)), 1) for band in range(5)]
        mean = sum(cells) / 5
        low, high = max(0.0, mean - 0.1), min(1.0, mean + 0.1)
        shape = {"task": "passkey", "length_tokens": length, "ci_low": low, "ci_high": high}
        results.append(Result(metric="accuracy", value=mean, **shape))
        results += [
            Result(
                metric="accuracy_at_depth",
                value=value,
                num_samples=10,
                details={"depth_from": band / 5, "depth_to": (band + 1) / 5},
                **shape,
            )
            for band, value in enumerate(cells)
        ]
    return results


@pytest.fixture(scope="module")
def arms() -> list[Arm]:
    return [
        Arm(name="base", results=perplexities(8.13, 41.0, 94.8, 412.0, 2083.9) + passkeys(1, 0, 0, 0, 0)),
        Arm(
            name="interpolation only",
            results=perplexities(9.27, 15.1, 20.7, 16.2, 14.4) + passkeys(1, 0.8, 0.5, 0.3, 0),
        ),
        Arm(name="extended", results=perplexities(8.62, 11.4, 13.9, 11.0, 9.19) + passkeys(1, 1, 1, 0.8, 0.5)),
    ]


@pytest.fixture(scope="module")
def panels(arms: list[Arm]) -> list[str]:
    return drawings(arms)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, arms: list[Arm]) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    made = {"Command": "skipwise demo --seed 0 --out " + "runs/" * 30, "Versions": "made up 1.0", "Time": "0 s"}
    write_report(path, arms, title="Made-up numbers", original_tokens=256, made=made)
    return path


# Numbers and names


@given(st.integers(1, 1 << 24))
def test_a_length_is_written_so_that_it_reads_back(length: int) -> None:
    assert parse_length(length_label(length)) == length


@pytest.mark.parametrize(
    ("length", "text"), [(256, "256"), (1536, "1.5k"), (4096, "4k"), (1000, "1000"), (1 << 20, "1M")]
)
def test_lengths_are_written_as_people_write_them(length: int, text: str) -> None:
    assert length_label(length) == text


@pytest.mark.parametrize(("value", "text"), [(8.13, "8.13"), (94.8, "94.8"), (2083.9, "2,084"), (0.0, "0")])
def test_values_keep_three_digits(value: float, text: str) -> None:
    assert PERPLEXITY.text(value) == text


def test_shares_are_written_in_per_cent() -> None:
    assert PASSKEY.text(0.856) == "86%"
    result = Result(task="passkey", metric="accuracy", length_tokens=8, value=0.8, ci_low=0.7, ci_high=0.88)
    assert PASSKEY.text_with_interval(result) == "80% (70–88%)"


@pytest.mark.parametrize(("task", "title"), [("perplexity", "Perplexity"), ("sliding", "Sliding perplexity")])
def test_a_title_says_nothing_twice(task: str, title: str) -> None:
    assert Measure(task, "perplexity").title == title


def test_the_later_of_two_records_counts() -> None:
    arm = Arm(name="base", results=perplexities(1, 2, 3, 4, 5) + perplexities(9, 2, 3, 4, 5))
    assert arm.by_length(PERPLEXITY)[256].value == 9


def test_tables_hold_whole_inputs_only_and_mark_what_was_not_measured(arms: list[Arm]) -> None:
    short = Arm(name="short", results=arms[0].results[:1])
    table = table_of([short, arms[2]], PERPLEXITY)
    assert table.header == ("Tokens", "short", "extended")
    assert table.rows[0] == ("256", "8.13 (7.56–8.70)", "8.62 (8.02–9.22)")
    assert table.rows[4] == ("4k", "–", "9.19 (8.55–9.83)")
    assert [row[0] for row in table_of(arms, PASSKEY).rows] == ["256", "512", "1k", "2k", "4k"]


def test_the_terminal_table_fits_eighty_columns_and_takes_names_literally(arms: list[Arm]) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table([*arms[:2], Arm(name="[red]x", results=arms[2].results)]))
    text = console.export_text()
    assert "[red]x" in text
    assert "2,084" in text
    assert "Passkey accuracy" in text
    assert max(map(len, text.splitlines())) <= 80


def test_many_arms_stand_below_each_other_in_the_terminal(arms: list[Arm]) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    many = [Arm(name=f"[i]{n}", results=arms[n % 3].results) for n in range(15)]
    console.print(results_table(many))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for n in range(15):
        assert len(re.findall(rf"\[i\]{n}\b", text)) == 2, "perplexity and passkeys"
    heads = [line.split() for line in text.splitlines() if "4k" in line]
    assert [line[-5:] for line in heads] == [["256", "512", "1k", "2k", "4k"]] * 2
    assert "2,084" in text


def test_markdown_cells_stay_in_their_cell() -> None:
    table = Table(title="", header=("a", "b"), rows=(("x|y", "<b>\nz"),))
    assert table.markdown().splitlines()[2] == "| x\\|y | &lt;b> z |"


# Figures


def drawings(arms: list[Arm]) -> list[str]:
    figures = perplexity_by_length(arms, original_tokens=256), depth_grid(arms, "passkey", original_tokens=256)
    return [panel for figure in figures for panel in figure.panels]


def test_drawings_are_svg_with_a_label_and_their_numbers_in_words(arms: list[Arm], panels: list[str]) -> None:
    assert len(panels) == 1 + len(arms)
    for panel in panels:
        root = ElementTree.fromstring(panel)
        assert root.tag == f"{SVG}svg"
        assert root.get("role") == "img"
    assert "base: 256 8.13, 512 41.0, 1k 94.8, 2k 412, 4k 2,084." in panels[0]
    assert "4k, depth 80–100%: 70%" in panels[3]


def test_drawings_are_the_same_bytes_each_time(arms: list[Arm], panels: list[str]) -> None:
    assert drawings(arms) == panels
    assert not any("<metadata" in panel for panel in panels)


def test_drawings_on_one_page_share_no_names_and_reach_for_nothing_outside(panels: list[str]) -> None:
    together = "".join(panels)
    names = re.findall(r'\bid="([^"]+)"', together)
    assert len(names) == len(set(names))
    targets = re.findall(r'href="([^"]+)"', together) + re.findall(r"url\(([^)]+)\)", together)
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(names)


def test_names_of_arms_are_drawn_as_they_are(arms: list[Arm]) -> None:
    hostile = Arm(name='<script>"$\\frac{1$ --> &', results=arms[0].results)
    for panel in drawings([hostile]):
        assert "<script" not in panel
        ElementTree.fromstring(panel)


def test_cells_carry_the_colour_of_their_share_on_one_scale(arms: list[Arm], panels: list[str]) -> None:

    fills = [set(re.findall(r"fill: (#[0-9a-f]{6})", panel)) for panel in panels[1:]]
    for arm, found in zip(arms, fills, strict=True):
        expected = {to_hex(SHARE_COLOURS(record.value)) for record in arm.by_length_and_depth().values()}
        assert found - {"#000000", "#ffffff"} == expected


def contrast(first: Any, second: Any) -> float:
    low, high = sorted((relative_luminance(first), relative_luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("paper", PAPERS)
def test_lines_stand_out_on_light_and_dark(colour: str, paper: str) -> None:
    assert contrast(colour, paper) >= 3


def test_the_ground_is_the_page_that_contrast_was_measured_on() -> None:
    template = Path(drawing.__file__).with_name("page.html").read_text()
    assert tuple(re.findall(r"--paper: (#\w+)", template)) == PAPERS


# Linear sRGB as it appears without one kind of cone. Source: Machado, Oliveira and Fernandes 2009, severity 1.0.
CONES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def lab(colour: str, cones: list[list[float]]) -> np.ndarray:
    """CIELAB of a colour seen without some cones."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(cones) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ seen / (0.9505, 1, 1.089)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", CONES)
def test_the_demos_three_lines_are_apart_for_colour_blind_readers(kind: str) -> None:
    for first, second in itertools.combinations(COLOURS[:3], 2):
        assert np.linalg.norm(lab(first, CONES[kind]) - lab(second, CONES[kind])) > 30


def test_the_number_in_every_cell_can_be_read(arms: list[Arm]) -> None:
    for share in np.linspace(0, 1, 101):
        fill = SHARE_COLOURS(share)
        ink = "#000000" if relative_luminance(fill) > 0.179 else "#ffffff"
        assert contrast(fill, ink) >= 4.5
    assert math.isclose(contrast("#000000", "#ffffff"), 21)


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


def test_the_page_is_one_file_that_asks_for_nothing(page: Path) -> None:
    outline = Outline(page.read_text())
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert all(
        value and value.startswith("#") for name, value in outline.attributes if name in ("src", "href", "xlink:href")
    )
    assert not re.search(r"@import|url\((?!#)", page.read_text())


def test_the_page_begins_with_the_verdict_and_ends_with_how_it_was_made(page: Path) -> None:
    assert Outline(page.read_text()).headings == [
        "Made-up numbers",
        "In short",
        "Perplexity by length",
        "Passkeys found by length and depth",
        "Retrieval by task and length",
        "What was run",
        "How this was made",
    ]


def test_the_page_shows_every_arm_in_two_figures_with_their_tables(page: Path) -> None:
    tags = Outline(page.read_text()).tags
    assert (tags.count("figure"), tags.count("table"), tags.count("svg")) == (2, 3, 4)
    assert tags.count("caption") == 3
    assert tags.count("figcaption") == 2


def test_the_page_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_report(path, [Arm(name="base", results=passkeys(1, 0, 0, 0, 0))], title="x", original_tokens=256, made={})
    assert Outline(path.read_text()).headings[2:-2] == [
        "Passkeys found by length and depth",
        "Retrieval by task and length",
    ]


def test_the_page_escapes_what_it_is_told(tmp_path: Path, arms: list[Arm]) -> None:
    bad = "<script>alert(1)</script>"
    path = tmp_path / "page.html"
    write_report(path, [Arm(name=bad, results=arms[0].results)], title=bad, original_tokens=256, made={bad: bad})
    assert "<script" not in path.read_text()


# The model card


CARD: dict[str, Any] = {
    "window": Window(train=256, original=256, target=4096),
    "interpolation": {"kind": "yarn", "beta_fast": 32.0},
    "sampler": {"kind": "pose", "chunks": 2, "skips": "flat"},
    "tuning": {"kind": "full"},
    "data": {"source": "stdlib"},
}


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_says_what_was_done(tmp_path: Path) -> None:
    card = write_model_card(tmp_path, base="someone/small-7b", **CARD).read_text()
    assert front_matter(card) == {
        "base_model": "someone/small-7b",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["long-context", "skipwise"],
    }
    for part in (
        "# small-7b, extended to 4k tokens",
        "- Training window: 256 tokens\n",
        "- Target window: 4096 tokens (16 times)\n",
    ):
        assert part in card
    assert "- Positions: pose (chunks 2, skips flat)\n" in card
    assert "AutoModelForCausalLM.from_pretrained" in card


def test_a_card_without_results_says_so_and_claims_nothing(tmp_path: Path) -> None:
    card = write_model_card(tmp_path, base="someone/small-7b", **CARD).read_text()
    assert "No results were at hand" in card
    assert not re.search(r"perplexity|passkey|%|checks", card, re.IGNORECASE)


def test_a_card_gives_results_verdicts_and_notes(tmp_path: Path, arms: list[Arm]) -> None:
    card = write_model_card(
        tmp_path,
        base="small",
        results=arms,
        verdicts=[Verdict(name="chunks", status="pass", detail="they see\neach other")],
        notes=["Code only."],
        **CARD,
    ).read_text()
    assert "| 4k | 2,084 (1,938–2,230) | 14.4 (13.4–15.4) | 9.19 (8.55–9.83) |" in card
    assert "Nothing was measured" not in card
    assert "- pass: chunks: they see each other" in card
    assert "- Code only." in card


@pytest.mark.parametrize("base", ["runs/model", "/models/big", "small", "weights.gguf"])
def test_a_path_is_not_passed_off_as_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/model").mkdir(parents=True)
    assert "base_model" not in front_matter(write_model_card(tmp_path, base=base, **CARD).read_text())


def test_a_report_needs_no_model_library(fresh_python: Callable[[str], None]) -> None:
    fresh_python(
        "import sys, skipwise.report\nassert not {'torch', 'transformers', 'matplotlib.pyplot'} & {*sys.modules}"
    )
