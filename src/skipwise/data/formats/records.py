"""Records: JSON lines, JSON files, and the text of a record."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from skipwise.data.conversations import NAMES, ConversationError, conversation_of, fields_of, is_conversation
from skipwise.data.formats.encodings import Encoding
from skipwise.data.formats.faults import NAME_THE_FIELD, Found, UnreadableError
from skipwise.data.formats.lines import text_lines

DEFAULT_FIELD = "text"
"""The text field of records that no setting names another one for."""

# White space of ASCII: a line of other white space is no blank line.
_BLANK = " \t\n\r\x0b\x0c"
# A JSON file is parsed as a whole, which takes a few times its size.
_MOST_BYTES = 1 << 30
# The beginning of an array, and of a record or null in it.
_ARRAY = re.compile(r"\s*\[\s*(\{|null\b)?")
_OR_MESSAGES = ", or write conversations, in the field messages"
_JSON = "it must be an array of records (JSON objects), or one record"


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


def read_json(
    file: BinaryIO, name: str, field: str, cut: bool = False, encoding: Encoding | None = None
) -> Iterator[Found]:
    """A JSON file, plain or compressed: an array of records, or one record. It is read whole; `cut` is ignored."""
    try:
        whole = _whole(file, name, encoding)
        if not whole.strip(_BLANK):
            raise UnreadableError("empty", name, "is empty", f"{_JSON}: remove it or fetch it again")
        found = _parsed(whole, name, "fix it or fetch it again")
        if not isinstance(found, list | dict):
            raise UnreadableError("record", name, f"holds a {type(found).__name__}", _JSON)
        if not found:
            raise UnreadableError("empty", name, "holds no records", f"{_JSON}: remove it or fetch it again")
    except UnreadableError as error:
        yield 0, error
        return
    is_escaped = _may_have_surrogates(whole)
    del whole
    for number, record in enumerate(found if isinstance(found, list) else [found], start=1):
        where = f"{name}:{number}" if isinstance(found, list) else name
        try:
            yield number, _text_of_value(record, field, where, is_escaped, _JSON)
        except UnreadableError as error:
            yield number, error


def records_in_json(file: BinaryIO, name: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON file; raises as `records_in_lines`."""
    found = json.loads(_whole(file, name))
    yield from (record for record in (found if isinstance(found, list) else [found]) if isinstance(record, dict))


def is_json_of_records(file: BinaryIO, name: str, field: str) -> bool:
    """Whether a JSON file is an array of objects, or one object with the field or a conversation.

    Other JSON files, such as the settings of programs, lie in many folders and are no documents. A file that cannot be
    read counts as one of records if it begins as one does.
    """
    try:
        whole = _whole(file, name)
    except UnreadableError:
        return True
    if array := _ARRAY.match(whole):
        return array[1] is not None
    try:
        found = json.loads(whole)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and any(one in found for one in (*fields_of(field), field.partition(".")[0]))


def _whole(file: BinaryIO, name: str, encoding: Encoding | None = None) -> str:
    """The text of a file.

    Raises:
        UnreadableError: it breaks off, is in no known encoding, or too large.
    """
    lines, size = list[str](), file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= _MOST_BYTES:
        size = 0
        for _, line in text_lines(file, name, encoding=encoding):
            if isinstance(line, UnreadableError):
                raise line
            size += len(line)
            if size > _MOST_BYTES:
                break
            lines.append(line)
    if size > _MOST_BYTES:
        reason = f"is larger than the {_MOST_BYTES >> 20:,} MiB up to which JSON files are read, each as a whole"
        raise UnreadableError("size", name, reason, "write it as .jsonl, one record a line")
    return "".join(lines)


def _parsed(text: str, where: str, cure: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # For deep nesting and integers of thousands of digits, json raises other errors.
        reason = "nested too deep, or a number too long"
        if isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno}, " if error.lineno > 1 else ""
            reason = f"{error.msg}, {line}column {error.colno}"
        raise UnreadableError("record", where, f"is not JSON ({reason})", cure) from None


def _text_of_line(line: str, field: str, where: str) -> str:
    record = _parsed(line, where, "fix or remove the line")
    cure = "each line must be one JSON object with the text in it"
    if isinstance(record, list):
        cure += ": write one record a line, or call a file that is one array .json"
    return _text_of_value(record, field, where, _may_have_surrogates(line), cure)


def _text_of_value(record: Any, field: str, where: str, is_escaped: bool, cure: str) -> str:
    """The text of a JSON value, empty for null; `cure` is for other values than objects."""
    if record is None:
        return ""
    if not isinstance(record, dict):
        raise UnreadableError("record", where, f"holds a {type(record).__name__}", cure)
    text = text_of(record, field, where)
    # JSON can escape half of a surrogate pair, which is not a character and cannot be encoded.
    if is_escaped and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UnreadableError(
            "encoding",
            where,
            "has a lone surrogate (\\ud800 to \\udfff), which is not text",
            "fix or remove it",
        )
    return text


def _may_have_surrogates(written: str) -> bool:
    return "\\ud" in written or "\\uD" in written


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
    is_chat = any(name in record for name in NAMES)
    others = "; conversations are read with data.format=conversations, and not among texts" if is_chat else _OR_MESSAGES
    cure = NAME_THE_FIELD + others
    return UnreadableError("field", where, f"has no field {field!r}; its fields are {there}", cure)
