"""Numbers for people: two or three digits that say something, whatever their size."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from skipwise.records.pilot import FullRun
from skipwise.report.page import TEMPLATES
from skipwise.report.quantities import (
    about_text,
    cost_text,
    count_text,
    duration_text,
    hours_text,
    machine_text,
    money_text,
    seconds_text,
    short_hours_text,
    times_text,
)

RUN = FullRun(machine="a100-80", count=1, hours=9.2, total_bytes=2**30, fits=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (short_hours_text(6.2e-5), "under a minute"),
        (short_hours_text(0.4123), "25 min"),
        (short_hours_text(6.314), "6.3 h"),
        (short_hours_text(1089.4), "1,089 h"),
        (cost_text(0.000123), "<0.01"),
        (cost_text(0.0), "0"),
        (cost_text(0.1234), "0.12"),
        (cost_text(38.81), "38.8"),
        (count_text(57), "57"),
        (count_text(98_676), "98,700"),
        (times_text(16.0), "16"),
        (times_text(4.074), "4.07"),
        (times_text(1234.5), "1,234"),
        (seconds_text(5.3e-5), "<0.1 ms"),
        (seconds_text(0.0134), "13.4 ms"),
    ],
)
def test_numbers_have_two_or_three_digits(text: str, expected: str) -> None:
    assert text == expected


def test_what_stands_between_backticks_is_code_on_a_page_and_text_stays_text() -> None:
    page = TEMPLATES.from_string("{{ text | code }}")
    assert page.render(text="run `skipwise eval` & <b>") == "run <code>skipwise eval</code> &amp; &lt;b&gt;"
    assert page.render(text="a ` alone, `x<y`") == "a <code> alone, </code>x&lt;y`"


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (hours_text, {0.005: "less than a minute", 0.017: "about 1 minute", 0.41: "about 25 minutes",
                      1.6: "about 1.5 hours", 9.2: "about 9 hours", 100.0: "about 4 days"}),
        (money_text, {0.4: "less than $1", 2.2: "about $2", 20.3: "about $20", 1344.0: "about $1,300"}),
        (duration_text, {0.21: "0.2 s", 1.6: "2 s", 41.2: "41 s", 600.0: "10 minutes", 10800.0: "3 hours"}),
        (about_text, {7: "7", 64: "64", 121: "130", 2400: "2,400"}),
        (machine_text, {RUN: "one A100 80 GB", replace(RUN, machine="rtx-4090", count=2): "2 x RTX 4090",
                        replace(RUN, machine="this machine (CPU, 2 cores)"): "this machine (CPU, 2 cores)"}),
    ],
)  # fmt: skip
def test_numbers_have_no_false_precision(write: Any, texts: Mapping[Any, str]) -> None:
    assert {value: write(value) for value in texts} == texts
