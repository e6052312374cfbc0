"""How numbers and names are written for people: bytes, seconds, tokens, signed shares, settings, money."""

import math
import re
from collections.abc import Mapping

from skipwise.records.pilot import FullRun

TO = "\N{EN DASH}"
ABSENT = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")


def digits_text(value: float, digits: int = 3) -> str:
    """A number with about `digits` significant digits and no fewer than it has before the point: `9.19`, `2,084`."""
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{places}f}"


def bytes_text(value: float, digits: int = 3) -> str:
    """Bytes in the largest binary unit that leaves 1 or more: `512 MiB`, `1.46 GiB`."""
    power = min(len(_BINARY) - 1, int(math.log2(value) // 10)) if value >= 1 else 0
    return f"{digits_text(value / 1024**power, digits)} {_BINARY[power]}"


def seconds_text(value: float) -> str:
    """A duration in the unit that suits it: `12.0 ms`, `0.90 s`, `14 min`, `3.2 h`."""
    if 0 < value < 1e-4:
        return "<0.1 ms"
    if 0 < value < 0.1:
        return f"{digits_text(1000 * value)} ms"
    if value < 180:
        return f"{digits_text(value, 2 if value < 10 else 3)} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{digits_text(value / 3600, 2)} h"


def short_hours_text(hours: float) -> str:
    """A computing time with two or three digits: `under a minute`, `25 min`, `6.3 h`, `1,089 h`."""
    minutes = 60 * hours
    if minutes < 1:
        return "under a minute"
    return f"{minutes:.0f} min" if minutes < 100 else f"{digits_text(hours, 2 if hours < 10 else 3)} h"


def cost_text(value: float) -> str:
    """An amount of money in any currency: `<0.01`, `0.35`, `38.8`."""
    return "<0.01" if 0 < value < 0.01 else digits_text(value, 2 if value < 1 else 3)


def count_text(value: float) -> str:
    """A whole number with at most three significant digits: `57`, `98,700`."""
    return f"{float(f'{value:.3g}'):,.0f}"


def times_text(value: float) -> str:
    """A factor with up to three digits, and no zeros behind the point: `16`, `4.07`."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def signed_text(value: float, places: int = 1) -> str:
    """A number with its sign, `+4.2` or `−0.3`; what rounds to zero has none."""
    text = f"{abs(value):.{places}f}"
    if not float(text):
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def per_cent_of_log(log_ratio: float) -> float:
    """A logarithm of a ratio as per cent more, or less where negative: ln(1.05) is 5."""
    return 100 * math.expm1(log_ratio)


def settings_text(settings: Mapping[str, object]) -> str:
    """Settings in a line, the kind first and bare: `pose (chunks 2, skips flat)`."""
    rest = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "kind" and value is not None)
    kind = settings.get("kind")
    return rest if kind is None else f"{kind} ({rest})" if rest else str(kind)


def shortened(text: str, most: int = 36) -> str:
    """At most this many letters, the last of them an ellipsis where some are left out."""
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def duration_text(seconds: float) -> str:
    """A duration without more digits than people remember: `41 s`, `2 s`, `0.2 s`, `12 minutes`, `3 hours`."""
    if seconds < 0.95:
        return f"{max(seconds, 0.01):.1g} s"
    return f"{seconds:.0f} s" if seconds < 119.5 else hours_text(seconds / 3600).removeprefix("about ")


def hours_text(hours: float) -> str:
    """About how long: `less than a minute`, `about 25 minutes`, `about 9 hours`, `about 4 days`."""
    minutes = 60 * hours
    if minutes < 1:
        return "less than a minute"
    if minutes < 89:
        number = round(minutes) if minutes < 10 else 5 * round(minutes / 5)
        return f"about {number} minute{'s' if number != 1 else ''}"
    if hours < 2.75:
        return f"about {round(2 * hours) / 2:g} hours"
    return f"about {hours:.0f} hours" if hours < 47.5 else f"about {hours / 24:.0f} days"


def about_text(value: float) -> str:
    """A number of two significant digits, rounded up: `64`, `120`, `2,400`."""
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1) if value >= 1 else 1
    return f"{math.ceil(value / unit) * unit:,}"


def money_text(value: float) -> str:
    """About how much, in two significant digits: `about $20`, `about $1,300`, `less than $1`."""
    if value < 1:
        return "less than $1"
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return f"about ${round(value / unit) * unit:,}"


def machine_text(run: FullRun) -> str:
    """The machines of a full run: `one A100 80 GB`, `8 x H100`, `this machine (CPU, 2 cores)`."""
    if not re.fullmatch(r"[a-z0-9-]+", run.machine):
        return run.machine
    name = re.sub(r"-(\d\d)$", r" \1 GB", run.machine).upper().replace("-", " ")
    return f"one {name}" if run.count == 1 else f"{run.count} x {name}"
