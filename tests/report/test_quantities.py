"""Numbers for people: two or three digits that say something, whatever their size."""

import pytest

from skipwise.report.page import TEMPLATES
from skipwise.report.quantities import cost_text, count_text, seconds_text, short_hours_text, times_text


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
