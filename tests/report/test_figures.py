"""Figures keep their promises: colours, names, labels, the same bytes. All numbers here are made up."""

import itertools
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up_results import arm_of, records_of
from matplotlib.colors import to_hex, to_rgb

from skipwise.report import drawing
from skipwise.report.drawing import COLOURS, relative_luminance
from skipwise.report.evidence import Arm
from skipwise.report.figures import (
    SHARE_COLOURS,
    Line,
    Point,
    axis_edges,
    depth_grid,
    dot_panel,
    line_panel,
    perplexity_by_length,
)
from skipwise.report.quantities import seconds_text

PAPERS = ("#ffffff", "#15181c")  # light and dark, as in page.html


@pytest.fixture(scope="module")
def arms() -> list[Arm]:
    return [arm_of(name, records_of(name, kinds=())) for name in ("base", "interpolation only", "randpos")]


@pytest.fixture(scope="module")
def panels(arms: list[Arm]) -> list[str]:
    figures = perplexity_by_length(arms, original_tokens=256), depth_grid(arms, "passkey", original_tokens=256)
    return [panel for figure in figures for panel in figure.panels]


def test_drawings_are_svg_with_a_label_and_their_numbers_in_words(arms: list[Arm], panels: list[str]) -> None:
    assert len(panels) == 2 + len(arms), "the arms near the best have a drawing of their own"
    for panel in panels:
        root = ElementTree.fromstring(panel)
        assert (root.tag, root.get("role")) == ("{http://www.w3.org/2000/svg}svg", "img")
        assert "<metadata" not in panel
    assert "base: 256 8.40, 512 19.5, 1k 70.4, 2k 170, 4k 172." in panels[0]
    assert "4k, depth 80\N{EN DASH}100%: 70%" in panels[4]


def test_drawings_on_one_page_share_no_names_and_reach_for_nothing_outside(panels: list[str]) -> None:
    together = "".join(panels)
    names = re.findall(r'\bid="([^"]+)"', together)
    assert len(names) == len(set(names))
    targets = re.findall(r'href="([^"]+)"', together) + re.findall(r"url\(([^)]+)\)", together)
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(names)


def test_cells_carry_the_colour_of_their_share_on_one_scale(arms: list[Arm], panels: list[str]) -> None:
    for arm, panel in zip(arms, panels[2:], strict=True):
        expected = {to_hex(SHARE_COLOURS(record.value)) for record in arm.by_length_and_depth().values()}
        assert set(re.findall(r"fill: (#[0-9a-f]{6})", panel)) - {"#000000", "#ffffff"} == expected


def test_a_line_that_failed_everywhere_is_still_in_the_legend() -> None:
    lines = [Line(name="a", index=0, points=[Point(256, 1.0)]), Line(name="b", index=1, points=[], failed=[256])]
    assert "b: 256 failed." in line_panel(lines, title="Time", text=seconds_text)


# Rows of dots


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


# Colours


def contrast(first: Any, second: Any) -> float:
    low, high = sorted((relative_luminance(first), relative_luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_lines_stand_out_on_light_and_dark() -> None:
    assert math.isclose(contrast("#000000", "#ffffff"), 21)
    assert min(contrast(colour, paper) for colour in COLOURS for paper in PAPERS) >= 3
    template = Path(drawing.__file__).with_name("page.html").read_text()
    assert tuple(re.findall(r"--paper: (#\w+)", template)) == PAPERS


def test_the_number_in_every_cell_can_be_read() -> None:
    for share in np.linspace(0, 1, 101):
        fill = SHARE_COLOURS(share)
        assert contrast(fill, "#000000" if relative_luminance(fill) > 0.179 else "#ffffff") >= 4.5


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
def test_the_first_three_lines_are_apart_for_colour_blind_readers(kind: str) -> None:
    for first, second in itertools.combinations(COLOURS[:3], 2):
        assert np.linalg.norm(lab(first, CONES[kind]) - lab(second, CONES[kind])) > 30
