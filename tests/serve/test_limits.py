"""Allowances by the minute."""

import pytest

from skipwise.serve.keys import Role
from skipwise.serve.limits import Limiter
from skipwise.serve.refusals import Refusal


def test_requests_flow_in_steadily() -> None:
    now = 0.0
    limiter, role = Limiter(lambda: now), Role(requests_per_minute=6)
    for _ in range(6):
        limiter.take_request("a", role)
    with pytest.raises(Refusal, match="6 requests a minute; 0 are left and 1 are needed") as refusal:
        limiter.take_request("a", role)
    assert refusal.value.headers == {"Retry-After": "10"}
    limiter.take_request("b", role)
    now = 10.0
    limiter.take_request("a", role)
    with pytest.raises(Refusal):
        limiter.take_request("a", role)
    now = 1e6
    for _ in range(6):
        limiter.take_request("a", role)
    with pytest.raises(Refusal):
        limiter.take_request("a", role)


def test_tokens_that_were_not_used_come_back() -> None:
    now = 0.0
    limiter, role = Limiter(lambda: now), Role(tokens_per_minute=1000)
    limiter.take_tokens("a", role, 900)
    with pytest.raises(Refusal, match="1000 tokens a minute; 100 are left and 300 are needed") as refusal:
        limiter.take_tokens("a", role, 300)
    assert refusal.value.status == 429
    assert refusal.value.headers == {"Retry-After": "12"}
    limiter.give_back("a", 200)
    limiter.take_tokens("a", role, 300)


def test_a_request_of_more_than_a_minutes_worth_never_fits() -> None:
    limiter = Limiter(lambda: 0.0)
    with pytest.raises(Refusal, match="comes to 1001 tokens") as refusal:
        limiter.take_tokens("a", Role(tokens_per_minute=1000), 1001)
    assert refusal.value.status == 403
    assert refusal.value.headers == {}


def test_no_limit_is_none() -> None:
    limiter = Limiter(lambda: 0.0)
    for _ in range(1000):
        limiter.take_request("a", Role())
        limiter.take_tokens("a", Role(), 10**9)


def test_a_role_that_changes_counts_from_now_on() -> None:
    limiter = Limiter(lambda: 0.0)
    limiter.take_request("a", Role(requests_per_minute=100))
    limiter.take_request("a", Role(requests_per_minute=1))
    with pytest.raises(Refusal):
        limiter.take_request("a", Role(requests_per_minute=1))
