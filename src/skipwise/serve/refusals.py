"""What a client gets instead of an answer, in the form that OpenAI's clients read."""

import math
from typing import Any

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refusal(Exception):  # noqa: N818 (it is an answer, and as such no error)
    """An answer with a status of 400 or more.

    The message is one line: what was given, what is allowed, what to do. It never holds text of a prompt. `code` is a
    word for programs, `param` the field at fault; the client may try again after `retry_after` seconds; `allow` lists
    methods as the header `Allow` does.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after, self._allow = retry_after, allow

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients read."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to this refusal."""
        retry_after = None if self.retry_after is None else str(max(1, math.ceil(self.retry_after)))
        authenticate = "Bearer" if self.status == 401 else None
        headers = {"Retry-After": retry_after, "WWW-Authenticate": authenticate, "Allow": self._allow}
        return {name: value for name, value in headers.items() if value is not None}


def overloaded(message: str, retry_after: float = 2) -> Refusal:
    """The server has too much to do."""
    return Refusal(503, f"{message}; try again later", code="overloaded", retry_after=retry_after)


def shutting_down(message: str = "the server is shutting down; try again soon") -> Refusal:
    """The server takes no more requests, or cut one off."""
    return Refusal(503, message, code="shutting_down", retry_after=5)
