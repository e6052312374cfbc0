"""Requests and tokens per minute of each key: token buckets that hold one minute's worth.

The library `limits` has windows and no buckets: it cannot give back what a request did not use, and its moving window,
the only one that allows no double burst, keeps an entry in memory for each token.
"""

import time
from collections.abc import Callable

from skipwise.serve.keys import Role
from skipwise.serve.refusals import Refusal


class Limiter:
    """Counts what keys use; `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # What is left of each allowance, and when that was so; below zero after more was used than taken beforehand.
        self._left: dict[tuple[str, str], tuple[float, float]] = {}

    def take_request(self, owner: str, role: Role) -> None:
        """Counts a request.

        Raises:
            Refusal: 429, too many within a minute.
        """
        self._take(owner, "requests", role.requests_per_minute, 1)

    def take_tokens(self, owner: str, role: Role, tokens: int) -> None:
        """Counts all tokens that a request may come to, before it runs.

        Raises:
            Refusal: 429, too many within a minute; 403, the request alone exceeds a minute's worth.
        """
        limit = role.tokens_per_minute
        if limit is not None and tokens > limit:
            raise Refusal(
                403,
                f"the request comes to {tokens} tokens, prompt and new ones, and this key may use {limit} tokens a "
                "minute; send less, or ask for another role",
                code="tokens_per_minute_exceeded",
            )
        self._take(owner, "tokens", limit, tokens)

    def give_back(self, owner: str, tokens: int) -> None:
        """Returns tokens that were taken and not used."""
        if (found := self._left.get((owner, "tokens"))) is not None:
            self._left[owner, "tokens"] = found[0] + tokens, found[1]

    def _take(self, owner: str, what: str, limit: int | None, amount: int) -> None:
        if limit is None:
            return
        now = self._clock()
        level, updated = self._left.get((owner, what), (float(limit), now))
        # A bucket fills steadily and holds a minute's worth, of an allowance that may have changed.
        level = min(float(limit), level + (now - updated) * limit / 60)
        if level < amount:
            self._left[owner, what] = level, now
            wait = (amount - level) * 60 / limit
            raise Refusal(
                429,
                f"this key may use {limit} {what} a minute; {max(0, int(level))} are left and {amount} are needed; try "
                f"again in {wait:.1f} seconds",
                code="rate_limit_exceeded",
                retry_after=wait,
            )
        self._left[owner, what] = level - amount, now
