"""The audit log: who asked, when, for how many tokens, and the outcome; one JSON line per request, never any text.

`AuditLog` writes it, `read_log` reads it again, whatever version of the server has written it.
"""

import gzip
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config

from skipwise.errors import ConfigError

# Of the numbers and words that make up a line, many times over.
_LINE_BYTES = 1 << 16
# A file whose beginning has so many lines and no record among them is something else.
_FOREIGN_LINES = 1000
_SECONDS = ("seconds", "wait_seconds", "first_token_seconds", "compute_seconds")


def _existing(time: str) -> str:
    datetime.fromisoformat(time)  # Raises ValueError for 31 February.
    return time


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._@/-]{1,64}$")]
Moment = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"),
    AfterValidator(_existing),
]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Seconds = Annotated[float, Field(ge=0)]


@with_config(ConfigDict(strict=True, allow_inf_nan=False))
@dataclass(slots=True, kw_only=True)
class AuditRecord:
    """A request, as the log keeps it. All values are the server's own words and numbers, or a key's name.

    None where something is not known: of a request that was refused before, or in a line of an earlier version, which
    has no `role`, `code`, `original_window`, `asked_tokens`, and no seconds but `seconds`.

    Attributes:
        time: when the request ended, in UTC: `2026-11-30T06:45:15Z`.
        request_id: id of the request, also in the response as `X-Request-ID`.
        key: id of the API key; "-" for none.
        name: name of the API key; "-" for none.
        role: role of the API key; "-" for none.
        client: address of the client, or of a proxy in between.
        endpoint: name of the route, never the path as it was sent.
        model: model that was asked for, under one of the server's names.
        mode: mode that answered: `short` or `long`.
        original_window: original window of the model, in tokens. A longer request needs the long mode.
        asked_tokens: tokens of the prompt plus the most that may be generated. Limits and modes go by this number.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the answer that were sent.
        status: HTTP status; 499 if the client left before its answer was complete.
        code: why it was refused: `code` of the error that the client got.
        seconds: time from the head of the request to the last byte of the answer.
        wait_seconds: time in the queue, until its computation began or the client gave up.
        first_token_seconds: time until the first text.
        compute_seconds: time of its computation, with its share of passes that others were in; unknown with vLLM and
            llama.cpp.
    """

    time: Moment = ""
    request_id: Word
    key: Word = "-"
    name: str = "-"
    role: Word | None = None
    client: str = "-"
    endpoint: Word = "other"
    model: str | None = None
    mode: Literal["short", "long"] | None = None
    original_window: Count | None = None
    asked_tokens: Count | None = None
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    status: Count = 0
    code: Word | None = None
    seconds: Seconds = 0.0
    wait_seconds: Seconds | None = None
    first_token_seconds: Seconds | None = None
    compute_seconds: Seconds | None = None

    def line(self) -> str:
        """The line of the log, seconds rounded to tenths of a millisecond."""
        values = asdict(self)
        rounded = {name: round(values[name], 4) for name in _SECONDS if values[name] is not None}
        return json.dumps(values | rounded) + "\n"


_READER = TypeAdapter(AuditRecord)


class AuditLog:
    """Appends lines to a file that only its owner can read; without a path, it keeps no log.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._complained = False
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                # A line that a crash has torn ends here, so that the next one is whole.
                self._append(path, "\n" if _is_torn(path) else "")
            except OSError as error:
                raise ConfigError(
                    f"the audit log {str(path)!r} cannot be written ({error.strerror}); give another --audit FILE",
                    page="cannot-write",
                ) from error

    def write(self, record: AuditRecord) -> None:
        """Adds a line. If that fails, as on a full disk, requests are still answered, and stderr says so once."""
        if self._path is None:
            return
        record.time = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + "Z"
        try:
            self._append(self._path, record.line())
        except OSError as error:
            if not self._complained:
                print(f"skipwise: the audit log cannot be written ({error.strerror})", file=sys.stderr)
            self._complained = True

    @staticmethod
    def _append(path: Path, line: str) -> None:
        # Opened for each line, so that a log that was moved away is begun anew.
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(number, line.encode())
        finally:
            os.close(number)


Damage = Literal["broken", "torn"]
"""What is wrong with a line that cannot be read. `torn`: the file ends in the midst of it."""


def read_log(path: Path) -> Iterator[AuditRecord | Damage]:
    """The records of a log, one after the other, or what is wrong with a line; the file may be compressed by gzip.

    Raises:
        ConfigError: the file cannot be read, or is not an audit log.
    """
    records = broken = 0
    try:
        with _opened(path) as file:
            for line in _lines(file):
                record = None if line is None else _record(line)
                if record is not None:
                    records += 1
                    yield record
                    continue
                broken += 1
                if not records and broken >= _FOREIGN_LINES:
                    break
                yield "torn" if line is None or not line.endswith(b"\n") else "broken"
    except OSError as error:
        raise ConfigError(
            f"the audit log {str(path)!r} cannot be read ({error.strerror}); give another", page="not-found"
        ) from error
    if broken and not records:
        raise ConfigError(f"{str(path)!r} is not an audit log; give a file that 'skipwise serve --audit FILE' has left")


def _opened(path: Path) -> BufferedIOBase:
    """A file, decompressed if it begins as gzip's do."""
    with path.open("rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_compressed else path.open("rb")


def _lines(file: BufferedIOBase) -> Iterator[bytes | None]:
    """Lines that are not empty; None at the end of a compressed file whose own end is missing or damaged."""
    skipping = False
    while True:
        try:
            line = file.readline(_LINE_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            yield None
            return
        if not line:
            return
        is_cut = len(line) == _LINE_BYTES and not line.endswith(b"\n")
        # Of a line that is too long, the first part stands for all of it.
        if not skipping and line.strip():
            yield line + b"\n" if is_cut else line
        skipping = is_cut


def _record(line: bytes) -> AuditRecord | None:
    """The record in a line; None if there is none, or if a value cannot be right."""
    try:
        record = _READER.validate_json(line)
    except ValidationError:
        return None
    # Without them, it is a line of something else.
    return record if record.time and record.status else None


def _is_torn(path: Path) -> bool:
    """Whether a file ends in the midst of a line."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # It is empty, or not there yet.
        return False
