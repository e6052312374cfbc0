"""docs/reference/python.md: the public names of the package, with their signatures and docstrings."""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

import skipwise
from reference_pages.text import code, entries, parts_of, sentence, table
from skipwise import errors

_INTRODUCTION = """# Python

These names are public: `from skipwise import extend`. They load on first use, so `import skipwise` is cheap. Other modules
may change between versions.

"""


def page() -> str:
    """The page."""
    names = [name for name in skipwise.__all__ if name not in ("__version__", "errors")]
    functions = [name for name in names if inspect.isfunction(getattr(skipwise, name))]
    classes = [name for name in names if inspect.isclass(getattr(skipwise, name))]
    tables = [name for name in names if isinstance(getattr(skipwise, name), Mapping)]
    text = _INTRODUCTION + "## Functions\n\n" + "".join(_function(name, getattr(skipwise, name)) for name in functions)
    text += "## Classes\n\n" + "".join(_class(name, getattr(skipwise, name)) for name in classes)
    text += "## Tables\n\n" + "".join(_mapping(name, getattr(skipwise, name)) for name in tables)
    return text + _errors()


# What a run's settings are asked by; other methods are for the package itself.
_METHODS = {"RunConfig": ("from_mapping", "from_yaml", "to_yaml", "output_folder", "resolve_window")}


def _function(name: str, function: Any, level: int = 3) -> str:
    return f"{'#' * level} {name}\n\n```py\n{_signature(name, function)}\n```\n\n{_docstring(_documented(function))}"


def _documented(function: Any) -> Any:
    """The function, or the one of a protocol that its docstring points to."""
    found = re.fullmatch(r"See `(\w+)\.(\w+)`\.", function.__doc__ or "")
    if not found:
        return function
    package = sys.modules[function.__module__.rpartition(".")[0]]
    return getattr(function.__globals__.get(found[1]) or getattr(package, found[1]), found[2])


def _signature(name: str, function: Any) -> str:
    """As the source has it, one argument a line if it is long."""
    tree: Any = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    arguments = tree.args
    told = [_argument(one, default) for one, default in _with_defaults(arguments)]
    told = [one for one in told if one not in ("self", "cls")]
    if arguments.vararg:
        told.append(f"*{_argument(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        told.append("*")
    told += [_argument(one, default) for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        told.append(f"**{_argument(arguments.kwarg, None)}")
    return _call(name, told, f" -> {ast.unparse(tree.returns).strip(chr(39))}" if tree.returns else "")


def _call(name: str, arguments: list[str], ending: str = "") -> str:
    line = f"{name}({', '.join(arguments)}){ending}"
    return line if len(line) <= 88 else f"{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){ending}"


def _with_defaults(arguments: Any) -> list[tuple[Any, Any]]:
    plain = [*arguments.posonlyargs, *arguments.args]
    return list(zip(plain, [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults, strict=True))


def _argument(argument: Any, default: Any) -> str:
    kind = f": {ast.unparse(argument.annotation).strip(chr(39))}" if argument.annotation else ""
    return f"{argument.arg}{kind}" + (f" = {ast.unparse(default)}" if default is not None else "")


def _docstring(thing: Any, *, attributes: bool = True) -> str:
    text, sections = parts_of(thing)
    made = f"{text}\n\n" if text else ""
    for title, section in (("Args", "argument"), ("Attributes", "attribute"), ("Raises", "raises")):
        if title in sections and (attributes or title != "Attributes"):
            rows = [[code(name), sentence(said)] for name, said in entries(sections[title]).items()]
            made += table([section, "meaning"], rows)
    for title in ("Returns", "Yields"):
        if title in sections:
            made += f"{title}: {' '.join(sections[title].split())}\n\n"
    return made


def _class(name: str, kind: Any) -> str:
    is_settings = issubclass(kind, BaseModel)
    text = f"### {name}\n\n"
    if dataclasses.is_dataclass(kind) and not _is_open(kind):
        kept = [field for field in dataclasses.fields(kind) if field.init]
        fields = ["*"] * all(field.kw_only for field in kept) + [_field(field) for field in kept]
        text += f"```py\n{_call(name, fields)}\n```\n\n"
    if is_settings:
        about = parts_of(kind)[0]
        text += f"{about}\n\nIts fields are the [settings of a run](settings.md#a-run).\n\n"
    else:
        text += _docstring(kind)
    for method, function in vars(kind).items():
        if (method.startswith("_") and method != "__call__") or method not in _METHODS.get(name, [method]):
            continue
        function = getattr(function, "__func__", function)
        if inspect.isfunction(function) and function.__doc__ and not method.startswith("model_"):
            text += _function(f"{name}.{method}", function, level=4)
        elif isinstance(function, property) and function.__doc__:
            text += f"#### {name}.{method}\n\nA property. {_docstring(function)}"
    return text


def _is_open(kind: Any) -> bool:
    return not any(field.init for field in dataclasses.fields(kind))


def _field(field: Any) -> str:
    kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
    return f"{field.name}: {kind}{default}"


def _mapping(name: str, mapping: Mapping[str, Any]) -> str:
    rows = [
        [code(kind), code(one.__name__), f"{parts_of(one)[0].split(chr(10) + chr(10))[0]}"]
        for kind, one in mapping.items()
    ]
    return f"### {name}\n\nBy name, as settings have it in `kind`.\n\n" + table(["name", "class", "what it is"], rows)


def _errors() -> str:
    kinds = [one for one in vars(errors).values() if inspect.isclass(one)]
    rows = [[code(one.__name__), code(one.__bases__[0].__name__), parts_of(one)[0]] for one in kinds]
    return (
        "## Errors\n\nIn `skipwise.errors`. Each message is one line: what was given, what is allowed, what to do.\n\n"
        + table(["error", "a kind of", "raised when"], rows)
    )
