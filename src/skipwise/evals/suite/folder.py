"""A suite on disk: a folder that describes itself, and that cannot be used after a change.

    suite.json               description, with the SHA-256 of every other file and of itself
    README.md                the same for people
    items/2048-fact.jsonl    the items of one length and kind, one per line; see `item.Item`

The folder is written under another name and renamed when it is complete.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from skipwise.errors import ConfigError, DataError
from skipwise.evals.languages import LANGUAGES
from skipwise.evals.suite.item import Item
from skipwise.evals.suite.kinds import Scoring

FORMAT = 1
_INDEX = "suite.json"
_SCORING: Mapping[Scoring, str] = {
    "contains": "the output contains the answer",
    "begins": "the output begins with the answer",
    "likeliest": "the answer is the likeliest of the choices",
}


class SuiteFolder:
    """A complete suite, checked on opening.

    Attributes:
        folder: its folder.
        index: content of `suite.json`.

    Raises:
        DataError: it is not a suite, has another format, is incomplete, or was changed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.index: dict[str, Any] = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
            rest = {name: value for name, value in self.index.items() if name != "sha256"}
            genuine = self.index["sha256"] == _hash_json(rest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{self.folder} is no complete suite (no readable {_INDEX}); build one with: skipwise eval build-suite",
                page="changed-files",
            ) from None
        if not genuine:
            raise DataError(
                f"{self.folder / _INDEX} was changed after the suite was built; build the suite again",
                page="changed-files",
            )
        if self.index["format"] != FORMAT:
            raise DataError(
                f"{self.folder} has suite format {self.index['format']}, known is {FORMAT}; build it again",
                page="changed-files",
            )
        for name, sha256 in self.index["files"].items():
            path = self.folder / name
            if not path.is_file() or _hash_file(path) != sha256:
                what = "was changed after the suite was built" if path.is_file() else "is missing"
                raise DataError(
                    f"{path} {what}; build the suite again, or copy the whole folder again", page="changed-files"
                )

    @property
    def sha256(self) -> str:
        """Hash of the whole suite."""
        return self.index["sha256"]

    @property
    def lengths(self) -> list[int]:
        """Lengths in the suite's own tokens, ascending."""
        return self.index["lengths"]

    @cached_property
    def kinds(self) -> Mapping[str, Mapping[str, Any]]:
        """Kinds of items in order, controls included, each with its description."""
        return self.index["kinds"]

    def items(self, length_tokens: int, kind: str) -> list[Item]:
        """The items of one length and kind."""
        # Not `splitlines`: documents contain other line separators.
        with (self.folder / _items_name(length_tokens, kind)).open(encoding="utf-8") as file:
            return [Item.from_json(line) for line in file]


class SuiteWriter:
    """Writes the files of a suite to an empty folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "items").mkdir()

    def add_items(self, length_tokens: int, kind: str, items: list[Item]) -> None:
        """Writes all items of one length and kind."""
        path = self._folder / _items_name(length_tokens, kind)
        path.write_text("".join(item.to_json() + "\n" for item in items), encoding="utf-8", newline="\n")

    def finish(self, index: Mapping[str, Any]) -> None:
        """Writes the README, then the index, which makes it a suite.

        Args:
            index: JSON values: `seed`, `lengths`, `num_items`, `kinds`, `tokenizer`, `documents`; `languages`, codes of
                those that are asked in, if it is not that documents in English are asked about in English.
        """
        (self._folder / "README.md").write_text(_readme(index), encoding="utf-8", newline="\n")
        names = sorted(path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file())
        whole = {"format": FORMAT, **index, "files": {name: _hash_file(self._folder / name) for name in names}}
        text = json.dumps(whole | {"sha256": _hash_json(whole)}, ensure_ascii=False, indent=2)
        (self._folder / _INDEX).write_text(text + "\n", encoding="utf-8", newline="\n")


@contextmanager
def new_suite(folder: Path) -> Iterator[SuiteWriter]:
    """Within, a suite is written. It moves to `folder` if the block succeeds; otherwise nothing is left.

    Raises:
        ConfigError: the folder exists and is not empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"out is {str(folder)!r}, which is already there; give a new folder, or remove it first",
            page="output-taken",
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # Left by an interrupted build.
    partial.mkdir(parents=True)
    try:
        yield SuiteWriter(partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _items_name(length_tokens: int, kind: str) -> str:
    return f"items/{length_tokens}-{kind}.jsonl"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _readme(index: Mapping[str, Any]) -> str:
    rows = "".join(
        f"| {name} | {kind['asks']} | {_SCORING[kind['scoring']]} | {kind['chance']:g} |\n"
        for name, kind in index["kinds"].items()
    )
    documents = index["documents"]
    return f"""# A private long-context benchmark

Made by `skipwise eval build-suite` from {documents["number"]} documents of {documents["characters"]} characters, with
seed {index["seed"]}. **It holds text of these documents: treat it as confidentially as them.**

Lengths, in tokens of the tokenizer {index["tokenizer"]["name"] or index["tokenizer"]["sha256"][:12]} with the answer
counted in: {", ".join(map(str, index["lengths"]))}. Items of each kind and length: {index["num_items"]}.
{_said_of_languages(index)}
| kind | what is asked | it counts when | chance |
|---|---|---|---|
{rows}
Run it on any checkpoint, with no network:

    skipwise eval MODEL --task suite --suite THIS_FOLDER

A score says something where its lower bound is above the chance level. Read `continue` against `continue_control`, the
same questions with the sentence taken out of the text: only the difference was read in the text, the rest is guessed
or known by heart. Documents that the model was trained on raise the control.

Each line of `items/LENGTH-KIND.jsonl` is one item: the prompt is `context` followed by `question`, `answer` is what
follows it (with its leading space), `choices` are all answers on offer, `depth` is where in the text the answer stands
(0 start, 1 end), `documents` are the names of those the text is from. Prompts are given as they are, without a chat
template. `suite.json` has the SHA-256 of every file; a suite that was changed is refused.
"""


def _said_of_languages(index: Mapping[str, Any]) -> str:
    """A paragraph about languages; empty if the documents are in English, since earlier versions did not say it."""
    if not (codes := index.get("languages")):
        return ""
    names = ", ".join(LANGUAGES[code].name for code in codes)
    asked = f"Questions and planted sentences are in {names}"
    if len(codes) > 1:
        asked += ", each in the language of its text"
    if (shares := index["documents"].get("languages")) is None:
        return f"\n{asked}.\n"
    told = ", ".join(f"{code} ({share:.0%})" for code, share in shares.items()) or "none that can be told"
    return f"\n{asked}.\nThe languages of the documents: {told}.\n"
