"""A made-up audit log: lines as a server writes them, without a server."""

import random
import time
from collections.abc import Iterator
from typing import Any

WINDOW = 8192
_LARGEST = {"reader": 14, "analyst": 17, "batch": 16}
_START = 1_795_996_800  # 30 November 2026


def lines(number: int, *, seed: int = 0, days: float = 9) -> Iterator[dict[str, Any]]:
    """Lines of requests by three roles, and by nobody; some refused, some given up."""
    rng = random.Random(seed)
    for place in range(number):
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_START + 86400 * days * place / number))
        role = rng.choices([*_LARGEST, "-"], [60, 20, 10, 5])[0]
        key = "-" if role == "-" else f"{role}{rng.randrange(4):x}"
        line: dict[str, Any] = {"time": moment, "request_id": f"{place:024x}", "key": key, "name": "ada", "role": role}
        line |= {"client": "127.0.0.1", "endpoint": "/v1/completions", "model": None, "mode": None}
        line |= {"original_window": None, "asked_tokens": None, "prompt_tokens": 0, "completion_tokens": 0}
        line |= {"status": 200, "code": None, "seconds": 0.001}
        line |= dict.fromkeys(("wait_seconds", "first_token_seconds", "compute_seconds"))
        yield line | (_outcome(rng, role) if role != "-" else {"status": 401, "code": "no_api_key"})


def _outcome(rng: random.Random, role: str) -> dict[str, Any]:
    kind = rng.choices(["other", "busy", "long", "full", "waited", "left", "done"], [5, 2, 2, 2, 2, 3, 84])[0]
    if kind == "other":
        return {"endpoint": "/v1/models"}
    if kind == "busy":
        return {"status": 429, "code": "rate_limit_exceeded"}
    asked = int(2 ** rng.uniform(5, _LARGEST[role]))
    new = rng.randint(1, asked - 1)
    told = {"original_window": WINDOW, "asked_tokens": asked, "model": "m"}
    if kind == "long":
        return {**told, "status": 403, "code": "context_length_not_allowed"}
    told |= {"mode": "short" if asked <= WINDOW else "long", "prompt_tokens": asked - new}
    if kind == "full":
        return {**told, "status": 503, "code": "overloaded"}
    wait = round(rng.choice([0.0, rng.expovariate(1)]), 4)
    if kind == "waited":
        return {**told, "status": 499, "wait_seconds": wait, "compute_seconds": 0.0}
    seconds = round(asked * 1e-5 + asked**2 * 1e-9 + 1e-3, 4)
    told |= {"wait_seconds": wait, "compute_seconds": seconds, "seconds": wait + seconds}
    if kind == "left":
        return {**told, "status": 499}
    return {**told, "completion_tokens": rng.randint(1, new), "first_token_seconds": round(wait + seconds / 2, 4)}
