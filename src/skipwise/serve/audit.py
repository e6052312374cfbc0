"""The audit log: who asked, when, for how many tokens, and the outcome; one JSON line per request, never any text."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from skipwise.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class AuditRecord:
    """A request, as the log keeps it. All values are the server's own words and numbers, or a key's name.

    Attributes:
        request_id: also in the response, as `X-Request-ID`.
        key: id of the key; "-" for none.
        name: name of the key; "-" for none.
        client: address of the connection: a proxy's, if there is one in between.
        endpoint: the route; never the path as it was sent.
        model: the model that was asked for, by one of the server's names.
        mode: the mode that answered: `short` or `long`.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the answer, as far as it was sent.
        status: HTTP status; 499 if the client left before its answer was complete.
        seconds: from the request's head to its last byte.
    """

    request_id: str
    key: str = "-"
    name: str = "-"
    client: str = "-"
    endpoint: str = "other"
    model: str | None = None
    mode: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    seconds: float = 0.0


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
                self._append(path, "")
            except OSError as error:
                raise ConfigError(
                    f"the audit log {str(path)!r} cannot be written ({error.strerror}); give another --audit FILE"
                ) from error

    def write(self, record: AuditRecord) -> None:
        """Adds a line. If that fails, as on a full disk, requests are still answered, and stderr says so once."""
        if self._path is None:
            return
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + "Z"
        try:
            self._append(
                self._path, json.dumps({"time": moment, **asdict(record), "seconds": round(record.seconds, 4)}) + "\n"
            )
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
