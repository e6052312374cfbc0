"""Whose turn it is, step by step and without a thread: costs are told, so every order is known."""

import threading
import time
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest

from serve.standin import StandIn, answer_to
from skipwise.errors import CheckpointError, ConfigError
from skipwise.inference.engine import GenerationRequest
from skipwise.serve.refusals import Refusal
from skipwise.serve.scheduler import Job, Progress, Scheduler, Turns


class Bench:
    """A scheduler whose clock is the stand-in's own bill: a second for each token that is read or written."""

    def __init__(self, **turns: Any) -> None:
        self.engine = StandIn(chunk_tokens=32)
        self.now = 0.0
        self.told: dict[int, list[Progress]] = {}
        self.scheduler = Scheduler(self.engine, Turns(**turns), clock=lambda: self.now)
        step, bench = self.engine.start, self

        def start(request: GenerationRequest) -> Any:
            generation = step(request)
            inner = generation.step

            def timed() -> list[int]:
                before = generation.stats.cache_bytes
                new = inner()
                bench.now += generation.stats.cache_bytes - before + len(new)
                return new

            generation.step = timed  # type: ignore[method-assign]
            return generation

        self.engine.start = start  # type: ignore[method-assign]

    def ask(self, name: str, prompt_tokens: int, new_tokens: int, owner: str = "-") -> Job:
        told: list[Progress] = []
        ids = list((name * prompt_tokens).encode())
        request = GenerationRequest(prompt_ids=ids, max_new_tokens=new_tokens)
        job = self.scheduler.submit(owner, request, told.append)
        self.told[id(job)] = told
        return job

    def finish(self) -> str:
        """Takes turns until there is nothing to do; whose they were, in order."""
        while self.scheduler.turn():
            pass
        return "".join(self.engine.log)


def code_of(progress: Progress) -> str:
    assert progress.error is not None
    return str(progress.error.code)


def shares(log: str) -> dict[str, int]:
    return {name: log.count(name) for name in sorted(set(log))}


def test_a_short_request_waits_for_one_step_of_a_long_one() -> None:
    bench = Bench()
    bench.ask("L", 2048, 8)
    for _ in range(5):
        bench.scheduler.turn()
    assert bench.engine.log == list("LLLLL")
    bench.ask("s", 20, 8)
    log = bench.finish()[5:]
    # 28 seconds of work are less than the 32 that one chunk of the other takes: it is through after one such chunk.
    assert "L" not in log[log.index("s") : log.rindex("s") + 1] or log[: log.rindex("s")].count("L") <= 1
    assert log.count("s") == 9


def test_without_fair_turns_the_short_one_waits_for_the_end() -> None:
    bench = Bench(fair=False)
    bench.ask("L", 2048, 8)
    bench.ask("s", 20, 8)
    assert [name for name, _ in groupby(bench.finish())] == ["L", "s"]


def test_turns_are_fair_by_time_and_not_by_number() -> None:
    bench = Bench()
    bench.ask("L", 3200, 1)
    bench.ask("s", 1, 60)
    log = bench.finish()
    # A chunk costs as much as 32 tokens: while both run, each chunk is followed by about as many tokens.
    both = log[: log.rindex("s") + 1]
    assert 1 <= both.count("L") <= 3
    assert shares(log) == {"L": 101, "s": 61}


def test_an_owner_of_many_requests_gets_no_more_than_an_owner_of_one() -> None:
    bench = Bench()
    for _ in range(8):
        bench.ask("m", 1, 40, owner="many")
    bench.ask("o", 1, 40, owner="one")
    log = bench.finish()
    until_one_is_done = log[: log.rindex("o") + 1]
    assert abs(until_one_is_done.count("m") - until_one_is_done.count("o")) <= 1


def test_who_comes_late_has_not_saved_up_time() -> None:
    bench = Bench()
    bench.ask("a", 1, 60, owner="early")
    for _ in range(40):
        bench.scheduler.turn()
    bench.ask("b", 1, 60, owner="late")
    log = bench.finish()[40:]
    assert abs(log[:20].count("a") - log[:20].count("b")) <= 1


def test_who_comes_again_and_again_has_not_saved_up_time() -> None:
    bench = Bench()
    bench.ask("a", 1, 50, owner="steady")
    for _ in range(10):
        bench.ask("b", 1, 3, owner="often")
        for _ in range(8):
            bench.scheduler.turn()
    steady = bench.finish()[:80].count("a")
    assert steady >= 38


def test_who_waited_for_a_slot_has_not_saved_up_time() -> None:
    bench = Bench(long_slots=1)
    bench.ask("L", 320, 1, owner="first")
    bench.ask("M", 320, 1, owner="second")
    for _ in range(6):
        bench.ask("s", 1, 60, owner="third")
    log = bench.finish()
    assert log.rindex("L") < log.index("M") < log.rindex("s") < log.rindex("M")


def test_long_requests_leave_slots_to_short_ones_and_the_other_way_round() -> None:
    bench = Bench(short_slots=2, long_slots=1)
    for name in "LM":
        bench.ask(name, 320, 1)
    for name in "xyz":
        bench.ask(name, 40, 4)
    bench.scheduler.turn()
    assert (bench.scheduler.num_running, bench.scheduler.num_waiting) == (3, 2)
    log = bench.finish()
    assert log.rindex("L") < log.index("M")
    assert max(log.rindex("x"), log.rindex("y")) < log.rindex("L")
    assert log.index("z") > min(log.rindex("x"), log.rindex("y"))


def test_the_last_slot_is_not_for_who_has_all_others() -> None:
    bench = Bench(short_slots=3, several_owners=True)
    for _ in range(5):
        bench.ask("h", 1, 30, owner="hog")
    bench.scheduler.turn()
    assert bench.scheduler.num_running == 2
    bench.ask("g", 1, 2, owner="guest")
    log = bench.finish()
    assert log.rindex("g") < 10


def test_answers_are_whole_and_each_its_own() -> None:
    bench = Bench(short_slots=4)
    jobs = {name: bench.ask(name, 10 + place, 5 + place) for place, name in enumerate("abcdefghij")}
    bench.finish()
    for place, (name, job) in enumerate(jobs.items()):
        told = bench.told[id(job)]
        assert "".join(one.text for one in told) == answer_to(name.encode() * 10, 5 + place)
        assert [one.is_last for one in told].count(True) == 1
        assert told[-1].finish_reason == "length"
    assert bench.engine.open == set()


def test_a_cancelled_request_takes_no_further_step() -> None:
    bench = Bench()
    running, waiting = bench.ask("r", 10, 50), None
    for _ in range(5):
        bench.scheduler.turn()
    waiting = bench.ask("w", 10, 50)
    bench.scheduler.cancel(running)
    bench.scheduler.cancel(waiting)
    assert bench.finish() == "rrrrr"
    assert [code_of(bench.told[id(job)][-1]) for job in (running, waiting)] == ["shutting_down"] * 2
    assert bench.engine.open == set()
    assert (bench.scheduler.num_running, bench.scheduler.num_waiting) == (0, 0)


def test_a_full_queue_refuses_with_the_numbers() -> None:
    bench = Bench(waiting=3, waiting_each=2)
    bench.ask("a", 1, 1, owner="a")
    bench.ask("a", 1, 1, owner="a")
    with pytest.raises(Refusal, match="2 requests of this key are waiting and 2 may") as refusal:
        bench.ask("a", 1, 1, owner="a")
    assert refusal.value.status == 429
    bench.ask("b", 1, 1, owner="b")
    with pytest.raises(Refusal, match="3 requests are waiting and 3 may") as refusal:
        bench.ask("b", 1, 1, owner="b")
    assert refusal.value.status == 503
    assert int(refusal.value.headers["Retry-After"]) >= 1


def test_the_time_to_come_back_is_that_of_requests_and_not_of_all_since_the_start() -> None:
    bench = Bench(short_slots=2, waiting=2)
    bench.ask("a", 1, 9)
    for _ in range(300):
        # There is always one that runs, so no bill begins at nothing.
        bench.ask("a", 1, 9)
        while bench.scheduler.num_running + bench.scheduler.num_waiting > 1:
            bench.scheduler.turn()
    bench.finish()
    for turns in (1, 1, 0, 0):
        bench.ask("w", 1, 9)
        for _ in range(turns):
            bench.scheduler.turn()
    with pytest.raises(Refusal) as refusal:
        bench.ask("w", 1, 9)
    # Each takes 10 seconds of the machine, and two wait.
    assert 8 <= int(refusal.value.headers["Retry-After"]) <= 12


def test_when_the_thread_ends_by_a_fault_nobody_waits_for_it(capfd: Any) -> None:
    engine, told = StandIn(token_seconds=0.002), []
    inner = engine.start

    def start(request: GenerationRequest) -> Any:
        generation = inner(request)
        if request.prompt_ids[0] == ord("x"):
            generation.close = lambda: 1 / 0  # type: ignore[method-assign]
        return generation

    engine.start = start  # type: ignore[method-assign]
    scheduler = Scheduler(engine, Turns())
    for prompt, new in ((b"abc", 2000), (b"x", 1)):
        scheduler.submit("-", GenerationRequest(prompt_ids=list(prompt), max_new_tokens=new), told.append)
    scheduler.start()
    end = time.monotonic() + 5
    while sum(one.is_last for one in told) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert sorted(one.finish_reason or code_of(one) for one in told if one.is_last) == ["length", "shutting_down"]
    assert not scheduler.is_running
    with pytest.raises(Refusal, match="shutting down"):
        scheduler.submit("-", GenerationRequest(prompt_ids=[97], max_new_tokens=1), told.append)
    assert "the computing thread ended by ZeroDivisionError" in capfd.readouterr().err


def test_draining_finishes_what_is_there() -> None:
    bench = Bench()
    job = bench.ask("a", 4, 4)
    bench.scheduler.drain()
    with pytest.raises(Refusal, match="shutting down"):
        bench.ask("b", 1, 1)
    bench.finish()
    assert bench.told[id(job)][-1].finish_reason == "length"


def test_a_fault_of_the_model_is_no_fault_of_the_request() -> None:
    bench = Bench()

    def start(request: GenerationRequest) -> Any:
        raise CheckpointError("a logit is NaN") if request.prompt_ids[0] == ord("n") else ConfigError("too long")

    bench.engine.start = start  # type: ignore[method-assign]
    jobs = [bench.ask(name, 4, 4) for name in "nl"]
    bench.finish()
    errors = [bench.told[id(job)][-1].error for job in jobs]
    assert [error and (error.status, error.message) for error in errors] == [
        (500, "a logit is NaN"),
        (400, "too long"),
    ]


def test_memory_that_runs_out_is_told_as_such_and_others_go_on() -> None:
    bench = Bench()
    inner = bench.engine.start

    def start(request: GenerationRequest) -> Any:
        if request.prompt_ids[0] == ord("x"):
            raise MemoryError
        return inner(request)

    bench.engine.start = start  # type: ignore[method-assign]
    failed, well = bench.ask("x", 4, 4), bench.ask("y", 4, 4)
    bench.finish()
    error = bench.told[id(failed)][-1].error
    assert error is not None
    assert (error.status, error.retry_after) == (503, 30)
    assert bench.told[id(well)][-1].finish_reason == "length"


def test_a_thread_computes_and_ends_with_what_is_left_closed() -> None:
    engine = StandIn(token_seconds=0.002)
    scheduler = Scheduler(engine, Turns())
    told: list[Progress] = []
    ended = threading.Event()

    def deliver(progress: Progress) -> None:
        told.append(progress)
        if progress.is_last:
            ended.set()

    scheduler.start()
    request: Callable[[int], GenerationRequest] = lambda new: GenerationRequest(  # noqa: E731
        prompt_ids=[97, 98], max_new_tokens=new
    )
    scheduler.submit("-", request(5), deliver)
    assert ended.wait(5)
    assert "".join(one.text for one in told) == "babab"
    ended.clear()
    scheduler.submit("-", request(2000), deliver)
    time.sleep(0.1)
    scheduler.stop()
    assert ended.wait(1)
    assert code_of(told[-1]) == "shutting_down"
    assert engine.open == set()
    assert not scheduler.is_running
    with pytest.raises(Refusal, match="shutting down"):
        scheduler.submit("-", request(1), deliver)
