"""How every form of config is read and mended, beside what transformers makes of it: one line a form, and counts.

    python benchmarks/config_forms.py > docs/results/config-forms.md

Tables are compared to 2e-6 and attention factors to 1e-6, those of transformers being its own rotary module's for the
folder. The same is asserted by tests/rope/test_rope_forms.py.
"""

import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from rope_forms import PLACES, Form, forms  # pyright: ignore[reportMissingImports]
from test_rope_forms import outcome  # pyright: ignore[reportMissingImports]
from transformers.utils import logging


def main() -> None:
    """Prints the record."""
    logging.set_verbosity_error()
    counts: Counter[str] = Counter()
    lines = []
    for (host, entry, era, layout), group in groupby(forms(), key=attrgetter("host", "entry", "era", "layout")):
        found: dict[str, dict[str, str]] = {}
        for form in group:
            found.setdefault(form.spelling, {})[form.place] = became = result(form)
            counts[became] += 1
        for spelling, places in found.items():
            cells = " | ".join(places.get(place, "") for place in PLACES)
            shown = entry if spelling == "rope_type" else f"{entry}, under `type`"
            lines.append(f"| {host} | {shown} | {era} | {layout} | {cells} |")
    print("# How every form of config is read and mended, beside what transformers makes of it\n")
    print(
        f"`python benchmarks/config_forms.py`, transformers {version('transformers')}. {sum(counts.values())} forms:\n"
    )
    for became, number in counts.most_common():
        print(f"- {number} {became}: {MEANING[became]}")
    print("\nThe last five columns are where the original window stands.\n")
    print("| model | entry | era | layout |", " | ".join(PLACES), "|")
    print("|---" * (4 + len(PLACES)) + "|")
    print("\n".join(lines))


MEANING = {
    "as it is": "nothing is wrong; reader, `plan` and `extend` have transformers' tables and attention factor",
    "mended": "the same, and `doctor --fix` leaves a folder of which transformers, and readers of either era alone, "
    "have these tables",
    "refused": "transformers refuses the folder, and so do `doctor`, `plan` and `extend`",
    "left to its maker": "transformers passes over what is written; `doctor` says so and changes nothing",
}


def result(form: Form) -> str:
    """What became of a form; how it failed where it did."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return outcome(form, Path(folder))
        except Exception as error:
            MEANING.setdefault("WRONG", "tables differ")
            print(f"{form}: {error}", file=sys.stderr)
            return "WRONG"


if __name__ == "__main__":
    main()
