"""Writes the pages of docs/reference/ from the code: `python scripts/reference.py`. A test compares them with it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from reference_pages import api, commands, formats, settings, support, variables

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings.page,
    "commands.md": commands.page,
    "python.md": api.page,
    "formats.md": formats.page,
    "exit-codes.md": commands.exit_codes,
    "environment.md": variables.page,
    "support.md": support.page,
}
_NOTE = "<!-- Written by scripts/reference.py: change the code that it describes, and run it again. -->\n\n"


def text_of(name: str) -> str:
    """A page as it is to be."""
    return _NOTE + PAGES[name]().rstrip() + "\n"


if __name__ == "__main__":
    for name in PAGES:
        (FOLDER / name).write_text(text_of(name), encoding="utf-8")
        print(f"docs/reference/{name}")
