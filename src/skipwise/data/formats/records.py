"""Records: JSON lines, and the text of a record."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from skipwise.data.conversations import NAMES, ConversationError, conversation_of, is_conversation
from skipwise.data.formats.encodings import Encoding
from skipwise.data.formats.faults import Found, UnreadableError
from skipwise.data.formats.lines import text_lines

DEFAULT_FIELD = "text"
"""The text field of records that no setting names another one for."""

# White space of ASCII: a line of other white space is no blank line.
_BLANK = " \t\n\r\x0b\x0c"


def read_lines(
    file: BinaryIO, name: str, field: str, cut: bool = False, encoding: Encoding | None = None
) -> Iterator[Found]:
    """JSON lines, plain or compressed; blank lines are skipped."""
    found = cut
    try:
        for number, line in text_lines(file, name, cut, encoding):
            if isinstance(line, str) and not line.strip(_BLANK):
                continue
            found = True
            try:
                yield (
                    number,
                    line if isinstance(line, UnreadableError) else _text_of_line(line, field, f"{name}:{number}"),
                )
            except UnreadableError as error:
                yield number, error
    except UnreadableError as error:
        yield 0, error
        return
    if not found:
        cure = "it must hold one JSON object per line: remove it or fetch it again"
        yield 0, UnreadableError("empty", name, "is empty", cure)


def records_in_lines(file: BinaryIO, name: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a file of JSON lines; raises an error of Python's at the first line that is not JSON."""
    for _, line in text_lines(file, name):
        if isinstance(line, UnreadableError):
            raise line
        record = json.loads(line) if line.strip(_BLANK) else None
        if isinstance(record, dict):
            yield record


def _text_of_line(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        # For deep nesting and integers of thousands of digits, json raises other errors.
        known = isinstance(error, json.JSONDecodeError)
        reason = f"{error.msg}, column {error.colno}" if known else "nested too deep, or a number too long"
        raise UnreadableError("record", where, f"is not JSON ({reason})", "fix or remove the line") from None
    if record is None:
        return ""
    if not isinstance(record, dict):
        raise UnreadableError(
            "record",
            where,
            f"holds a {type(record).__name__}",
            "each line must be one JSON object with the text in it",
        )
    text = text_of(record, field, where)
    # JSON can escape half of a surrogate pair, which is not a character and cannot be encoded.
    if ("\\ud" in line or "\\uD" in line) and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UnreadableError(
            "encoding",
            where,
            "has a lone surrogate (\\ud800 to \\udfff), which is not text",
            "fix or remove the line",
        )
    return text


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text of one record; empty if the record or the field is null or empty.

    Args:
        record: a JSON object or a table row.
        field: name of the text field; `a.b` is field `b` of field `a`, unless a field is named `a.b`.
        where: file and line, for the message.

    Raises:
        UnreadableError: the field is missing, or its value is not text.
    """
    if is_conversation(field):
        try:
            return conversation_of(record, field)
        except ConversationError as error:
            raise UnreadableError("conversation", where, str(error), "fix or remove it") from None
    text: Any = record
    path = field
    while path:
        if not text and (text is None or isinstance(text, Mapping)):
            return ""
        if not isinstance(text, Mapping):
            break
        if path in text:
            text, path = text[path], ""
        else:
            name, _, path = path.partition(".")
            if not path or name not in text:
                raise no_field(record, field, where)
            text = text[name]
    if path or (text is not None and not isinstance(text, str)):
        held = field.removesuffix(f".{path}") if path else field
        raise UnreadableError(
            "field",
            where,
            f"has a {type(text).__name__} in field {held!r}",
            "it must be text: name another field",
        )
    return text or ""


def no_field(record: Mapping[str, Any], field: str, where: str) -> UnreadableError:
    """The error of a record or table without the text field."""
    there = ", ".join(sorted(record)) or "none"
    cure = "name the field that holds the text"
    if any(name in record for name in NAMES):
        cure += "; conversations are read with data.format=conversations, and not among texts"
    return UnreadableError("field", where, f"has no field {field!r}; its fields are {there}", cure)
