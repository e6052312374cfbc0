"""Every verdict and every kind of refusal has a page, and messages send nobody to files that are not installed."""

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

import skipwise
from skipwise import errors
from skipwise.data.formats import PAGES
from skipwise.doctor.file_checks import CHECKS
from skipwise.pages import page_address, read_on

SOURCE = Path(skipwise.__file__).parent
ROOT = SOURCE.parents[1]
MESSAGES = ROOT / "docs" / "messages"
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
PARTS = ["What it means", "Why it matters", "Example", "Cure"]
# What makes verdicts by a name, and where the verdicts of the preflight and of `skipwise doctor` are made.
MAKERS = {"Verdict", "judge", "_note", "_passed", "_repeats"}
MADE_IN = ("doctor", "cli/doctor.py", "cli/corpus_verdicts.py", "train/context.py")


def calls(*places: str) -> Iterator[ast.Call]:
    files = [
        file for place in places for file in ([SOURCE / place], (SOURCE / place).rglob("*.py"))[place[-3:] != ".py"]
    ]
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def verdicts() -> set[str]:
    """The names under which the code makes verdicts."""
    # By its path, as `skipwise.doctor` may be the function of that name. A probe that stops is named by its function.
    names = {*CHECKS, *(probe.__name__ for probe in importlib.import_module("skipwise.doctor")._PROBES)}
    for call in calls(*MADE_IN):
        if isinstance(call.func, ast.Name) and call.func.id in MAKERS:
            named = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "name")]
            names |= {one.value for one in named if isinstance(one, ast.Constant)}
    return names


def refusals() -> set[str]:
    """The kinds of refusal: of each class of errors, and those that the code names where it raises."""
    kinds = {value.page for value in vars(errors).values() if isinstance(value, type)} | {*PAGES.values()}
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                given = [word.value for word in node.keywords if word.arg == "page"]
                kinds |= {one.value for one in given if isinstance(one, ast.Constant)}
            elif isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                own = [line.value for line in node.body if isinstance(line, ast.Assign) and "page" in ast.unparse(line)]
                kinds |= {one.value for one in own if isinstance(one, ast.Constant)}
    return kinds


VERDICTS, REFUSALS = verdicts(), refusals()


def test_every_name_has_a_page_and_every_page_a_name() -> None:
    assert not VERDICTS & REFUSALS
    assert {page.stem for page in MESSAGES.glob("*.md")} - {"index"} == VERDICTS | REFUSALS
    index = (MESSAGES / "index.md").read_text()
    assert {*re.findall(r"^\| \[(.+?)\]\(\1\.md\) \| .+ \|$", index, re.M)} == VERDICTS | REFUSALS


@pytest.mark.parametrize("name", sorted(VERDICTS | REFUSALS))
def test_a_page_has_its_parts_and_an_example_as_it_is_printed(name: str) -> None:
    text = (MESSAGES / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", text, re.M) == PARTS
    *_, example, cure = text.split("\n## ")
    printed = example.split("```text\n")[1].split("\n```")[0].splitlines()
    begins = rf"(pass|fail|note)  {name:<9}  \S" if name in VERDICTS else r"skipwise: \S"
    assert re.match(begins, printed[0]), printed[0]
    address = f"read on: {URLS['Documentation']}messages/{name}.html"
    is_told = not printed[0].startswith("pass") and name != errors.SkipwiseError.page
    assert [line for line in printed if line.startswith("read on")] == [address] * is_told
    assert re.search(r"^```(console\n\$ |python\n)", cure, re.M), "a command, or code"


def test_the_address_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Message()
    package["Project-URL"] = "Source, https://example.org/code"
    package["Project-URL"] = "Documentation, https://example.org/docs/"
    monkeypatch.setattr(metadata, "metadata", lambda name: {"skipwise": package}[name])
    assert page_address("reach") == "https://example.org/docs/messages/reach.html"
    assert read_on("reach") == "read on: https://example.org/docs/messages/reach.html"


@pytest.mark.parametrize("installed", [True, False])
def test_without_an_address_the_page_is_named(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(_: str) -> Message:
        if installed:
            return Message()
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "metadata", found)
    assert read_on("reach") == "read on: messages/reach in the documentation of skipwise"


# Folders and files of the repository; `docs/` alone is a folder of the user in the examples of the help.
NOT_INSTALLED = re.compile(
    r"\b(docs/(results|messages|guides|reference|tutorial)|recipes/|examples/|ARCHITECTURE|tests/)"
)


def messages(file: Path) -> Iterator[str]:
    """Texts of a file that users may see: strings, of the command its help too, and templates."""
    if file.suffix != ".py":
        yield file.read_text(encoding="utf-8")
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and file.parent.name != "cli"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_no_message_names_a_file_that_is_not_installed() -> None:
    files = [file for kind in ("*.py", "*.html", "*.yaml", "report/*.md") for file in SOURCE.rglob(kind)]
    assert [(file.name, told) for file in files for told in messages(file) if NOT_INSTALLED.search(told)] == []
