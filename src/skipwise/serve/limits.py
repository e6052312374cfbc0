"""Requests and tokens per minute of each key: token buckets that hold one minute's worth.

The library `limits` has windows and no buckets: it cannot give back what a request did not use, and its moving window,
the only one that allows no double burst, keeps an entry in memory for each token.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from skipwise.serve.keys import Role
from skipwise.serve.refusals import Refusal


@dataclass(slots=True)
class Bucket:
    """What is left of an allowance.

    Attributes:
        per_minute: what flows in per minute, and the most that the bucket holds.
        level: what is left; negative after more was used than was taken beforehand.
        updated: time of `level`, in seconds.
    """

    per_minute: int
    level: float
    updated: float

    def fill(self, per_minute: int, now: float) -> None:
        """Adds what flowed in until now; the allowance itself may have changed."""
        self.level = min(float(per_minute), self.level + (now - self.updated) * per_minute / 60)
        self.per_minute, self.updated = per_minute, now


class Limiter:
    """Counts what keys use.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

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
        if (bucket := self._buckets.get((owner, "tokens"))) is not None:
            bucket.level = min(float(bucket.per_minute), bucket.level + tokens)

    def _take(self, owner: str, what: str, limit: int | None, amount: int) -> None:
        if limit is None:
            return
        now = self._clock()
        bucket = self._buckets.setdefault((owner, what), Bucket(limit, float(limit), now))
        bucket.fill(limit, now)
        if bucket.level < amount:
            wait = (amount - bucket.level) * 60 / limit
            raise Refusal(
                429,
                f"this key may use {limit} {what} a minute; {max(0, int(bucket.level))} are left and {amount} are "
                f"needed; try again in {wait:.1f} seconds",
                code="rate_limit_exceeded",
                retry_after=wait,
            )
        bucket.level -= amount
