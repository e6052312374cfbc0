"""Every command and setting on the pages of the documentation is known; slow: commands print what the pages show."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from docs.checking import check_block
from docs.pages import ROOT, pages, read_page
from docs.running import Terminal
from docs.setups import SETUPS, make_common


def _pages(*, run: bool) -> list[Any]:
    """The pages, or those of them that have something to run."""
    found = [
        path
        for path in pages()
        if not run or any(block.runs for block in read_page(path).of_language("console", "python"))
    ]
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix(), marks=_one_at_a_time(path)) for path in found]


def _one_at_a_time(path: Path) -> list[pytest.MarkDecorator]:
    """Pages that start servers all use the port that readers would."""
    blocks = read_page(path).of_language("console")
    serves = any(line.startswith("$ skipwise serve") for block in blocks if block.runs for line in block.lines)
    return [pytest.mark.xdist_group("port")] if serves else []


@pytest.mark.parametrize("path", _pages(run=False))
def test_what_a_page_shows_is_known(path: Path) -> None:
    page = read_page(path)
    for block in page.blocks:
        check_block(block)
        assert {*block.setups} <= {*SETUPS}, f"line {block.line}: known setups are {', '.join(SETUPS)}"
    if any(block.needs_gpu for block in page.blocks):
        assert re.search("needs? (a|one) GPU", path.read_text(), re.IGNORECASE), "the page says so where readers see it"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all pages find in their folders."""
    folder = tmp_path_factory.mktemp("pages")
    make_common(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", _pages(run=True))
def test_a_page_runs(path: Path, shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    for common in ("my-model", "docs"):
        shutil.copytree(shared / common, folder / common)
    for common in ("chats.jsonl", "long-document.txt"):
        shutil.copy(shared / common, folder)
    with Terminal(folder, tmp_path / "home") as terminal:
        made: set[str] = set()
        for block in read_page(path).of_language("console", "python"):
            for name in block.setups:
                if name not in made:
                    SETUPS[name](folder, shared)
                    made.add(name)
            if block.runs:
                terminal.run(block)
