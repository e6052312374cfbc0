"""The pages of docs/reference/ are as the code is, and what is written by hand for them is complete."""

import re

import pytest
import reference
from reference_pages import variables


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_as_the_code_is(name: str) -> None:
    committed = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert committed == reference.text_of(name), "run `python scripts/reference.py`"


def test_every_variable_of_the_code_is_told() -> None:
    assert variables.used() == {*variables.OWN, *variables.READ, *variables.SET}


@pytest.mark.parametrize("name", ["settings.md", "commands.md", "python.md", "formats.md"])
def test_whatever_has_a_name_has_a_meaning(name: str) -> None:
    tables = [table.splitlines() for table in reference.text_of(name).split("\n\n") if table.startswith("| ")]
    rows = [row for head, *rows in tables if "| meaning |" in head for row in rows]
    assert len(rows) > 30
    assert [row for row in rows if re.match(r"\| [^|]+ \|  \|", row)] == []
