"""The words of a report: titles, paragraphs, captions and sentences, as templates in `words.yaml`."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from skipwise.records.results import EvalResult
from skipwise.records.stats import Estimate
from skipwise.report.evidence import Measure, difference_text
from skipwise.report.page import TEMPLATES, Figure, Section
from skipwise.report.quantities import (
    about_text,
    bytes_text,
    digits_text,
    duration_text,
    hours_text,
    machine_text,
    money_text,
    per_cent_of_log,
    seconds_text,
    signed_text,
)
from skipwise.report.tables import Table
from skipwise.window import length_label

MOST_NAMES = 6


def say(key: str, **facts: Any) -> list[str]:
    """The sentences under a dotted key of `words.yaml`, those that these facts give rise to.

    Args:
        key: such as `verdict.perplexity`; a sentence, or a list of them.
        facts: what the templates are filled with.
    """
    said = (" ".join(template.render(facts).split()) for template in _templates(key))
    return [sentence for sentence in said if sentence]


def section(key: str, *, figures: Sequence[Figure] = (), tables: Sequence[Table] = (), **facts: Any) -> Section:
    """A section with the title and paragraphs that `words.yaml` has under this key."""
    (title,) = say(f"{key}.title", **facts)
    return Section(title=title, words=say(f"{key}.words", **facts), figures=figures, tables=tables)


@cache
def _templates(key: str) -> list[jinja2.Template]:
    found = _words()
    for part in key.split("."):
        found = found[part]
    environment = TEMPLATES.overlay()
    environment.filters = {**TEMPLATES.filters, **_FILTERS}
    # Macros of the same part of the file stand before each of its sentences.
    first = _words()[key.split(".")[0]]
    macros = first.get("macros", "") if isinstance(first, dict) else ""
    return [environment.from_string(macros + text) for text in ([found] if isinstance(found, str) else found)]


@cache
def _words() -> Any:
    return yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))


def _name(name: str) -> str:
    """A name in a sentence: in quotation marks where its punctuation would be taken for the sentence's."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}" if set(name) & set(",;:.()") else name


def _names(names: Sequence[str]) -> str:
    shown = [_name(name) for name in names[:MOST_NAMES]]
    if len(names) > MOST_NAMES:
        return f"{', '.join(shown)} and {len(names) - MOST_NAMES} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _value(record: EvalResult) -> str:
    return Measure.of(record).text_with_interval(record)


def _at(length: int, original_tokens: int) -> str:
    times = length / original_tokens
    beyond = f", {times:g} times the original window" if times > 1 and times == int(times) else ""
    return f"{length_label(length)} tokens{beyond}"


def _of_100(gain: Estimate) -> str:
    """A difference of shares: `72 more (51 to 84)`, `8 fewer (−20 to +4)`."""
    value, *ends = (None if end is None else round(100 * end) for end in gain)
    text = f"{abs(value or 0)} {'more' if (value or 0) >= 0 else 'fewer'}"
    return text if None in ends else f"{text} ({_span([end or 0 for end in ends], (value or 0) < 0)})"


def _ratio(log_ratio: Estimate) -> str:
    """A logarithm of a ratio: `12% lower (9 to 15%)`, `2% higher (−1 to +5%)`."""
    value, *ends = (None if end is None else round(per_cent_of_log(end)) for end in log_ratio)
    text = f"{abs(value or 0)}% {'higher' if (value or 0) > 0 else 'lower'}"
    return text if None in ends else f"{text} ({_span([end or 0 for end in ends], (value or 0) < 0)}%)"


def _span(ends: Sequence[int], is_less: bool) -> str:
    """Ends of an interval; without signs where all of it is on one side of zero."""
    low, high = ends
    if low * high < 0 or not is_less:
        return f"{low} to {high}" if low >= 0 else f"{signed_text(low, 0)} to {signed_text(high, 0)}"
    return f"{-high} to {-low}"


_FILTERS = {
    "about": about_text,
    "at": _at,
    "bytes": bytes_text,
    "count": "{:,}".format,
    "difference": difference_text,
    "duration": duration_text,
    "hours": hours_text,
    "machine": machine_text,
    "money": money_text,
    "name": _name,
    "names": _names,
    "of_100": _of_100,
    "digits": digits_text,
    "percent": "{:.1%}".format,
    "ratio": _ratio,
    "seconds": seconds_text,
    "thousands": "{:,}".format,
    "tokens": length_label,
    "value": _value,
    "whole_percent": "{:.0%}".format,
}
