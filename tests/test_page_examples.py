"""The examples on the pages about messages are what is printed today, apart from numbers.

With WRITE_EXAMPLES=1 in the environment they are written into the pages instead.
"""

import os
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import page_examples
import pytest
from page_examples import COMMANDS, FAULTY_FILES, TARGET, Texts

import skipwise
from skipwise.model import load_model, save_model
from skipwise.pages import read_on
from skipwise.rope import YaRN

ROOT = Path(skipwise.__file__).parents[2]
PAGES = ROOT / "docs" / "messages"
# Printed by several processes: tests/train/test_context.py sees it fail.
ELSEWHERE = {"context"}
EXAMPLE = re.compile(r"(?<=^```text\n)(.*?)(?=\n```$)", re.M | re.S)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """By name, what is printed, in lines of at most 88 letters, which fit the site."""
    place = tmp_path_factory.mktemp("examples")
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skipwise.pages._documentation", lambda: address)
        patch.setenv("SKIPWISE_CACHE", str(place / "cache"))
        patch.setenv("COLUMNS", "80")
        patch.setenv("HOME", str(place))
        patch.chdir(place)
        page_examples.write_models()
        page_examples.write_documents(Texts())
        yield {**verdicts(place), **refusals()}


def verdicts(place: Path) -> dict[str, str]:
    loaded = load_model("my-model", interpolation=YaRN(), window=TARGET)
    save_model(loaded.model, loaded.tokenizer, place / "sound")
    found = {one.name: filled(one.line) for one in page_examples.of_models()}
    found |= {one.name: filled(one.line) for one in page_examples.of_slices()}
    found |= {one.name: filled(one.line) for one in page_examples.of_files(place / "sound", place)}
    found |= dict(page_examples.of_documents())
    return {name: text if text.startswith("pass") else f"{text}\n{read_on(name)}" for name, text in found.items()}


def refusals() -> dict[str, str]:
    return {name: "\n".join(map(filled, page_examples.refusal(name).splitlines())) for name in COMMANDS}


def filled(line: str) -> str:
    return textwrap.fill(line, 88, break_on_hyphens=False, break_long_words=False)


def test_every_page_has_an_example_from_here(printed: dict[str, str]) -> None:
    assert printed.keys() | ELSEWHERE == {page.stem for page in PAGES.glob("*.md")} - {"index"}
    assert printed.keys() >= FAULTY_FILES.keys()


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_an_example_is_what_is_printed(page: Path, printed: dict[str, str]) -> None:
    if page.stem in ELSEWHERE | {"index"}:
        return
    text = page.read_text()
    if os.environ.get("WRITE_EXAMPLES"):
        page.write_text(EXAMPLE.sub(lambda _: printed[page.stem], text, count=1))
    else:
        assert without_numbers(EXAMPLE.findall(text)[0]) == without_numbers(printed[page.stem])


def without_numbers(text: str) -> str:
    return " ".join(re.sub(r"\d[\d.,]*(e[-+]?\d+)?", "0", text).split())
