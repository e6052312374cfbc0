"""Who asked, when, for how many tokens, and what became of it: a line of JSON a request, and never a word of text."""

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
        request_id: that the response carries, too.
        key: id of the key; "-" for none.
        name: of its holder.
        client: address that it came from: a proxy's, where one is in between.
        endpoint: the route; never the path as it was sent.
        model: that was asked for, of those that are served.
        mode: `short` or `long`, where it came so far.
        prompt_tokens, completion_tokens: counted.
        status: of HTTP; 499 where the client went away before its answer was complete.
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
    """A file that lines are added to, made so that only its owner can read it.

    Args:
        path: of the file; None keeps no log.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._complained = False
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(self._open(path))
            except OSError as error:
                raise ConfigError(
                    f"the audit log {str(path)!r} cannot be written ({error.strerror}); give another --audit FILE"
                ) from error

    def write(self, record: AuditRecord) -> None:
        """Adds a line. A disk that is full stops no answer; it is complained about once."""
        if self._path is None:
            return
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + "Z"
        line = json.dumps({"time": moment, **asdict(record), "seconds": round(record.seconds, 4)}) + "\n"
        try:
            # Opened each time, so that whoever moves a full log away gets a new one.
            number = self._open(self._path)
            try:
                os.write(number, line.encode())
            finally:
                os.close(number)
        except OSError as error:
            if not self._complained:
                print(f"skipwise: the audit log cannot be written ({error.strerror})", file=sys.stderr)
            self._complained = True

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
