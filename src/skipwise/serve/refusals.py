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
    """An answer with a status from 400 on.

    Args:
        status: of HTTP.
        message: one line: what was given, what is allowed, what to do. It never holds text of a prompt.
        code: a word for programs.
        param: the field that is at fault.
        retry_after: seconds after which it is worth trying again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """That go with it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


_UNROUTED = {
    400: "the body cannot be read as JSON in UTF-8",
    404: "there is nothing at this path; see /openapi.json",
    405: "this path takes another method",
}


def unrouted(status: int, otherwise: str = "") -> Refusal:
    """What a request gets that no route takes."""
    return Refusal(status, _UNROUTED.get(status, otherwise), code="invalid_request")
