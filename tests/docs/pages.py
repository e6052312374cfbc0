"""What the pages of the documentation show: commands with their output, Python and YAML.

A block of `console` has commands and, beneath each, what it prints:

    $ skipwise coverage --target 32k
    Examples of 2k tokens that train a relative distance, in percent; target 32k
    ...

A command goes on after a backslash and in a here-document. `...` stands for lines, or the part of a line, that are left
out. A call of `skipwise` that ends with `&` runs until the end of the page.

Comments on the lines before a block steer the test:

    <!-- run: with --set training.max_steps=2 -->   adds arguments to `skipwise extend`, `compare` and `pilot`
    <!-- run: with eval --set trials=2 -->          adds them to another verb
    <!-- run: exit 1 -->                            exit code of the block's last command; of the others it is 0
    <!-- run: setup extended -->                    makes something before, named in `docs.setups.SETUPS`
    <!-- run: needs-gpu -->                         not run, but parsed; the page says "needs a GPU"
    <!-- run: not (takes a cluster) -->             not run, but parsed
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipwise.cli import VERBS

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)(`{3,}|~{3,}|:{3,}) *(\S*)")
_STEER = re.compile(r"^ *<!-- run: (.+?) -->$")
_HERE_DOCUMENT = re.compile(r"<<-? *(['\"]?)(\w+)\1")
TRAINING_VERBS = ("extend", "compare", "pilot")
WORDS = ("with", "exit", "setup", "needs-gpu", "not")


class PageError(ValueError):
    """A page says something that the tests cannot read."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command line and the lines that the page shows beneath it."""

    text: str
    shown: tuple[str, ...]
    line: int

    @property
    def words(self) -> list[str] | None:
        """The command's words if it is nothing but one call of `skipwise`, else None: it is for a shell."""
        try:
            words = shlex.split(self.text, comments=True)
        except ValueError:
            return None
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        has_operators = any(word and set(word) <= set("|&;<>()") for word in lexer) or re.search(r"[$`\n]", self.text)
        return words[1:] if words[:1] == ["skipwise"] and not has_operators else None

    def calls(self) -> Iterator[list[str]]:
        """The arguments of every call of `skipwise` within it, as far as a shell's operators separate them."""
        text = _HERE_DOCUMENT.split(self.text)[0]
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split, lexer.commenters = True, "#"
        call: list[str] | None = None
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;<>()"):
                if call is not None:
                    yield call
                call = None
            elif call is not None:
                call.append(word)
            elif word == "skipwise":
                call = []


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block and how the comments before it steer the test."""

    language: str
    lines: tuple[str, ...]
    line: int
    added: tuple[tuple[str, tuple[str, ...]], ...] = ()
    exit_code: int = 0
    setups: tuple[str, ...] = ()
    needs_gpu: bool = False
    reason_not_run: str = ""

    @property
    def runs(self) -> bool:
        return not self.needs_gpu and not self.reason_not_run

    def with_added(self, call: list[str]) -> list[str]:
        """The arguments of a call of `skipwise`, with those that the test adds to its verb."""
        of_call = " ".join(call[:2]) if " ".join(call[:2]) in VERBS else " ".join(call[:1])
        return [*call, *(word for verb, words in self.added if of_call == verb for word in words)]

    def commands(self) -> list[Command]:
        """Of a `console` block.

        Raises:
            PageError: it begins with output, or its here-document has no end.
        """
        lines = [line.rstrip() for line in self.lines]
        found: list[Command] = []
        i = 0
        while i < len(lines):
            if not lines[i].startswith("$ "):
                raise PageError(f"line {self.line + i + 1}: {lines[i]!r} is no command: a block begins with '$ '")
            start, text = i, lines[i][2:]
            while text.endswith("\\") and i + 1 < len(lines):
                i += 1
                text = text[:-1] + lines[i].removeprefix("> ").strip()
            if here := _HERE_DOCUMENT.search(text):
                while lines[i].removeprefix("> ").strip() != here[2]:
                    i += 1
                    if i == len(lines):
                        raise PageError(f"line {self.line + start + 1}: the here-document has no line {here[2]!r}")
                    text += "\n" + re.sub("^>( |$)", "", self.lines[i])
            i += 1
            shown = []
            while i < len(lines) and not lines[i].startswith("$ "):
                shown.append(lines[i])
                i += 1
            found.append(Command(text, tuple(shown), self.line + start + 1))
        return found

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its blocks, in order."""

    path: Path
    blocks: list[Block] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def of_language(self, *languages: str) -> list[Block]:
        return [block for block in self.blocks if block.language in languages]


def read_page(path: Path) -> Page:
    """Raises PageError for a block without an end and for comments that steer nothing."""
    return Page(path, list(_blocks(path.read_text(encoding="utf-8").splitlines())))


def _blocks(lines: Sequence[str]) -> Iterator[Block]:
    steering: list[str] = []
    i = 0
    while i < len(lines):
        if steer := _STEER.match(lines[i]):
            steering.append(steer[1])
        elif (fence := _FENCE.match(lines[i])) and not fence[2].startswith(":"):
            end = next((j for j in range(i + 1, len(lines)) if lines[j].strip() == fence[2]), None)
            if end is None:
                raise PageError(f"line {i + 1}: the block has no end")
            inside = tuple(line.removeprefix(fence[1]) for line in lines[i + 1 : end])
            yield _steered(Block(fence[3], inside, i + 1), steering)
            steering, i = [], end
        elif steering and lines[i].strip():
            raise PageError(f"line {i + 1}: a comment '<!-- run: ... -->' stands on the lines before a block")
        i += 1


def _steered(block: Block, steering: Sequence[str]) -> Block:
    how: dict[str, Any] = {}
    for text in steering:
        word, _, rest = text.partition(" ")
        if word == "with":
            words = shlex.split(rest)
            two_words = " ".join(words[:2]) in VERBS
            named = " ".join(words.pop(0) for _ in range(1 + two_words)) if not words[0].startswith("-") else ""
            verbs = (named,) if named else TRAINING_VERBS
            how["added"] = (*how.get("added", ()), *((verb, tuple(words)) for verb in verbs))
        elif word == "exit":
            how["exit_code"] = int(rest)
        elif word == "setup":
            how["setups"] = (*how.get("setups", ()), *rest.split())
        elif word == "needs-gpu":
            how["needs_gpu"] = True
        elif word == "not" and rest.strip("()"):
            how["reason_not_run"] = rest.strip("()")
        else:
            raise PageError(f"line {block.line}: '<!-- run: {text} -->' is not known; known: {', '.join(WORDS)}")
    return Block(block.language, block.lines, block.line, **how)


def pages() -> list[Path]:
    """All pages whose blocks are tested. Records say what was measured at their time, and are not run again."""
    own = [path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"]
    site = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
    examples = sorted((ROOT / "examples").rglob("*.md"))
    return [*own, *examples, *(path for path in site if path.parent.name != "results" or path.name == "index.md")]
