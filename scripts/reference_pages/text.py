"""Markdown from docstrings: tables, paragraphs, and the sections of Google's style."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SECTION = re.compile(r"^(Args|Arguments|Attributes|Returns|Yields|Raises|Source|Example|Examples):(.*)$")
_ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)$")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(value: Any) -> str:
    """In the type of code."""
    return f"`{value}`"


def sentence(text: str) -> str:
    """With a capital letter and a full stop; code and names such as `int64` at its beginning stay as they are."""
    text = " ".join(text.split())
    if not text:
        return ""
    text = text[0].upper() + text[1:] if text.split()[0].strip(".,;:").isalpha() else text
    return text if text.endswith((".", "!", "?", ":")) else text + "."


def parts_of(thing: Any) -> tuple[str, dict[str, str]]:
    """The text of a docstring before its sections, and its sections by name."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in lines:
        if found := _SECTION.match(line):
            name = found[1]
            sections[name] = [found[2].strip()] if found[2].strip() else []
        elif name and line and not line.startswith(" ") and name != "Source":
            name = ""  # Text that follows a section is text again.
            sections[""] += ["", line]
        else:
            sections[name].append(line)
    return "\n".join(sections.pop("")).strip(), {
        name: inspect.cleandoc("\n".join(["", *text])) for name, text in sections.items()
    }


def entries(section: str) -> dict[str, str]:
    """What a section says of each name; `a, b: text` is about both."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if entry := _ENTRY.match(line):
            names = [name.strip() for name in entry[1].split(",")]
            found.update(dict.fromkeys(names, entry[2]))
        else:
            for name in names:
                found[name] += " " + line.strip()
    return found


def attributes(thing: Any) -> dict[str, str]:
    """What docstrings say of a class's fields, those of its bases included."""
    said: dict[str, str] = {}
    for one in reversed(getattr(thing, "__mro__", [thing])):
        if one.__doc__ and one is not object:
            said |= entries(parts_of(one)[1].get("Attributes", ""))
    return said


def paragraphs(text: str) -> str:
    """The text as Markdown: what is indented is a block of code."""
    return "\n".join(line for line in text.splitlines()) + "\n\n" if text else ""


def yaml_block(tree: Mapping[str, Any] | str) -> str:
    """Settings as a block of YAML."""
    import yaml

    text = tree if isinstance(tree, str) else yaml.safe_dump(dict(tree), sort_keys=False)
    return f"```yaml\n{text.strip()}\n```\n\n"
