"""Allowances by the minute."""

import pytest

from skipwise.serve.keys import Role
from skipwise.serve.limits import Limiter
from skipwise.serve.refusals import Refusal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock)


def test_requests_flow_in_steadily_up_to_a_minutes_worth(limiter: Limiter, clock: Clock) -> None:
    role = Role(requests_per_minute=6)
    # After ten seconds one has flowed in; after days no more than six.
    for now, fit in ((0.0, 6), (10.0, 1), (1e6, 6)):
        clock.now = now
        for _ in range(fit):
            limiter.take_request("a", role)
        with pytest.raises(Refusal, match=r"6 requests.*0.*1") as refusal:
            limiter.take_request("a", role)
        assert (refusal.value.status, refusal.value.headers) == (429, {"Retry-After": "10"})
    limiter.take_request("b", role)


def test_tokens_that_were_not_used_come_back(limiter: Limiter) -> None:
    role = Role(tokens_per_minute=1000)
    limiter.take_tokens("a", role, 900)
    with pytest.raises(Refusal, match=r"1000 tokens.*100.*300") as refusal:
        limiter.take_tokens("a", role, 300)
    assert (refusal.value.status, refusal.value.headers) == (429, {"Retry-After": "12"})
    limiter.give_back("a", 200)
    limiter.take_tokens("a", role, 300)


def test_a_request_of_more_than_a_minutes_worth_never_fits(limiter: Limiter) -> None:
    with pytest.raises(Refusal, match="1001") as refusal:
        limiter.take_tokens("a", Role(tokens_per_minute=1000), 1001)
    assert (refusal.value.status, refusal.value.headers) == (403, {})


def test_no_limit_is_none(limiter: Limiter) -> None:
    for _ in range(1000):
        limiter.take_request("a", Role())
        limiter.take_tokens("a", Role(), 10**9)


def test_a_role_that_changes_counts_from_now_on(limiter: Limiter) -> None:
    limiter.take_request("a", Role(requests_per_minute=100))
    limiter.take_request("a", Role(requests_per_minute=1))
    with pytest.raises(Refusal):
        limiter.take_request("a", Role(requests_per_minute=1))
