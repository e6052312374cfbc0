"""How every form of config is read and repaired, compared with transformers: one line for each form, and counts.

    python benchmarks/config_forms.py > docs/results/config-forms.md

Tables are compared within 2e-6 and attention factors within 1e-6 with those of transformers' own rotary module for the
folder. tests/rope/test_rope_forms.py asserts the same.
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
    print("# Forms of configs: how each is read and repaired, compared with transformers\n")
    print(
        f"`python benchmarks/config_forms.py`, transformers {version('transformers')}. {sum(counts.values())} forms:\n"
    )
    for became, number in counts.most_common():
        print(f"- {number} {became}: {MEANING[became]}")
    print(
        "\n`era` is the version of transformers whose format the config has: 4 writes `rope_scaling`, 5 writes "
        "`rope_parameters`. The last\nfive columns say where the original window stands.\n"
    )
    print("| model | entry | era | layout |", " | ".join(PLACES), "|")
    print("|---" * (4 + len(PLACES)) + "|")
    print("\n".join(lines))


MEANING = {
    "as it is": "nothing is wrong; the reader, `plan` and `extend` have transformers' tables and attention factor",
    "fixed": "the config needs repair; the reader has the tables of transformers, and `doctor --fix` writes a "
    "folder from which transformers, and readers of `rope_scaling` or `rope_parameters` alone, get the same tables",
    "refused": "transformers refuses the folder, and so do `doctor`, `plan` and `extend`",
    "left to its maker": "transformers ignores what is written; `doctor` reports it and changes nothing",
}


def result(form: Form) -> str:
    """The outcome of a form; prints the error of one that fails."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return outcome(form, Path(folder))
        except Exception as error:
            MEANING.setdefault("WRONG", "tables differ")
            print(f"{form}: {error}", file=sys.stderr)
            return "WRONG"


if __name__ == "__main__":
    main()
