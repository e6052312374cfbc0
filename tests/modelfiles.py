"""Read Modelfiles and render their templates, apart from the code that writes them.

The reader follows Ollama's parser/parser.go; the renderer knows as much of Go's templates as a chat needs.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_modelfile(path: Path) -> dict[str, list[str]]:
    """The arguments of each instruction of a Modelfile, and of each parameter by its name."""
    found: dict[str, list[str]] = {}
    rest = path.read_text(encoding="utf-8")
    while rest := rest.lstrip():
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        name, _, rest = rest.partition(" ")
        if name == "PARAMETER":
            name, _, rest = rest.partition(" ")
        quote = next((mark for mark in ('"""', '"') if rest.startswith(mark)), None)
        value, _, rest = rest.removeprefix(quote).partition(quote) if quote else rest.partition("\n")
        found.setdefault(name, []).append(value)
    return found


def render_go(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama's Template.Execute writes: system texts are gathered in `.System`, and all are in `.Messages`."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    tokens = iter(re.split(r"(\{\{.*?\}\})", template, flags=re.DOTALL))
    given = {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    return _write(_block(tokens)[0], given, {"$": given})


def _block(tokens: Iterator[str]) -> tuple[list[Any], str]:
    """Parses up to an `end` or `else`; returns what was found and that word."""
    found: list[Any] = []
    for token in tokens:
        if not token.startswith("{{"):
            found.append(token)
            continue
        words = token[2:-2].strip()
        if words == "end" or words.startswith("else"):
            return found, words
        if words.startswith(("if ", "range ")):
            branches, condition = [], words
            while True:
                inner, ended = _block(tokens)
                branches.append((condition, inner))
                if ended == "end":
                    break
                condition = ended.removeprefix("else").strip()
            found.append(branches)
        else:
            found.append((words,))
    return found, "end"


def _write(nodes: Sequence[Any], dot: Any, variables: dict[str, Any]) -> str:
    text = ""
    for node in nodes:
        if isinstance(node, str):
            text += node
        elif isinstance(node, tuple):
            name, assigned, value = re.fullmatch(r"(?:(\$\w+) (:?=) )?(.*)", node[0]).groups()  # pyright: ignore
            if assigned:
                variables[name] = _value(value, dot, variables)
            else:
                text += _value(value, dot, variables)
        elif node[0][0].startswith("range "):
            ((condition, inner),) = node
            for each in _value(condition.removeprefix("range "), dot, variables):
                text += _write(inner, each, variables)
        else:
            for condition, inner in node:
                if not condition or _value(condition.removeprefix("if "), dot, variables):
                    text += _write(inner, dot, variables)
                    break
    return text


def _value(words: str, dot: Any, variables: Mapping[str, Any]) -> Any:
    if words.startswith(("eq ", "ne ")):
        left, right = words[3:].split(" ", 1)
        equal = _value(left, dot, variables) == _value(right, dot, variables)
        return equal if words.startswith("eq") else not equal
    if words.startswith('"'):
        return words[1:-1]
    return dot[words[1:]] if words.startswith(".") else variables[words]
