"""Whose turn it is, step by step and without a thread: costs are known, so every order is."""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import pytest

from serve.standin import StandIn, answer_to
from skipwise.errors import CheckpointError, ConfigError
from skipwise.inference.engine import Generation, GenerationRequest
from skipwise.serve.refusals import Refusal
from skipwise.serve.scheduler import Job, Progress, Scheduler, Turns


class TimedStandIn(StandIn):
    """Moves a clock by a second for each token that a step reads or writes."""

    now = 0.0

    def start(self, request: GenerationRequest) -> Any:
        generation = super().start(request)
        step = generation.step

        def timed() -> list[int]:
            before = generation.stats.cache_bytes
            new = step()
            self.now += generation.stats.cache_bytes - before + len(new)
            return new

        generation.step = timed  # type: ignore[method-assign]
        return generation


class TogetherStandIn(TimedStandIn):
    """Steps all that run together, in one second; fails for prompts of the byte `fail_on`."""

    def step(
        self, generation: Generation, others: Sequence[Generation] = ()
    ) -> dict[Generation, list[int] | Exception]:
        before, stepped = self.now, dict[Generation, list[int] | Exception]()
        for one in (generation, *others):
            stepped |= super().step(one)
        self.now = before + 1
        self.log[-len(stepped) :] = ["".join(self.log[-len(stepped) :])]
        return stepped


class Bench:
    """A scheduler whose clock is the stand-in's."""

    def __init__(self, engine: TimedStandIn | None = None, **turns: Any) -> None:
        self.engine = engine or TimedStandIn(chunk_tokens=32)
        self.told: dict[Job, list[Progress]] = {}
        self.scheduler = Scheduler(self.engine, Turns(**turns), clock=lambda: self.engine.now)

    def ask(self, name: str, prompt_tokens: int, new_tokens: int, owner: str = "-") -> Job:
        told: list[Progress] = []
        request = GenerationRequest(prompt_ids=list((name * prompt_tokens).encode()), max_new_tokens=new_tokens)
        job = self.scheduler.submit(owner, request, told.append)
        self.told[job] = told
        return job

    def turns(self, number: int) -> None:
        for _ in range(number):
            self.scheduler.turn()

    def finish(self) -> str:
        """Takes turns until there is nothing to do; whose they were, in order."""
        while self.scheduler.turn():
            pass
        return "".join(self.engine.log)

    def fail_start(self, of: Callable[[int], Exception | None]) -> None:
        """Has the engine raise at its start, by the first byte of the prompt."""
        inner = self.engine.start

        def start(request: GenerationRequest) -> Any:
            if (error := of(request.prompt_ids[0])) is not None:
                raise error
            return inner(request)

        self.engine.start = start  # type: ignore[method-assign]


def code_of(progress: Progress) -> str:
    assert progress.error is not None
    return str(progress.error.code)


def test_a_short_request_waits_for_one_step_of_a_long_one() -> None:
    bench = Bench()
    bench.ask("L", 2048, 8)
    bench.turns(5)
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
    assert 1 <= log[: log.rindex("s") + 1].count("L") <= 3
    assert (log.count("L"), log.count("s")) == (101, 61)


def test_requests_that_are_stepped_together_share_the_time() -> None:
    bench = Bench(TogetherStandIn(chunk_tokens=32))
    jobs = [bench.ask(name, 4, new, owner=name) for name, new in (("a", 3), ("b", 5), ("c", 3))]
    bench.finish()
    # Whoever has the smallest bill has the turn and pays for it, and takes along those that have begun.
    assert bench.engine.log == ["a", "ba", "cab", "abc", "bc", "cb", "b"]
    seconds = [1 + 1 / 2 + 1 / 3 + 1 / 3, 1 / 2 + 1 / 3 + 1 / 3 + 1 / 2 + 1 / 2 + 1, 1 / 3 + 1 / 3 + 1 / 2 + 1 / 2]
    assert [job.cost.compute_seconds for job in jobs] == pytest.approx(seconds)
    assert ["".join(progress.text for progress in bench.told[job]) for job in jobs] == ["aaa", "bbbbb", "ccc"]
    assert all(bench.told[job][-1].finish_reason == "length" for job in jobs)


def test_owners_have_equal_turns_however_many_come_along() -> None:
    bench = Bench(TogetherStandIn(chunk_tokens=32, original_window=512, target=64_000))
    for _ in range(15):
        bench.ask("m", 1, 200, owner="many")
    bench.ask("o", 1, 200, owner="one")
    bench.ask("L", 32_000, 1, owner="long")
    bench.turns(150)
    prefills = sum(step == "L" for step in bench.engine.log)
    # A step takes a second, whoever is in it, and a third of the time is the third owner's.
    assert 45 <= prefills <= 55
    assert max(map(len, bench.engine.log)) == 16, "all of the others' requests have begun"


def test_in_order_of_arrival_each_request_is_stepped_alone() -> None:
    bench = Bench(TogetherStandIn(chunk_tokens=32), fair=False)
    for name in "ab":
        bench.ask(name, 4, 2)
    assert bench.finish() == "aaabbb"


def test_of_requests_that_are_stepped_together_one_may_fail() -> None:
    bench = Bench(TogetherStandIn(chunk_tokens=32))
    sound, other = bench.ask("a", 4, 3), bench.ask("b", 4, 3)
    bench.turns(2)
    bench.engine.fail_on = ord("b")
    bench.finish()
    assert code_of(bench.told[other][-1]) == "engine_error"
    assert bench.told[sound][-1].finish_reason == "length"
    assert bench.engine.open == set()


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
    bench.turns(40)
    bench.ask("b", 1, 60, owner="late")
    log = bench.finish()[40:]
    assert abs(log[:20].count("a") - log[:20].count("b")) <= 1


def test_who_comes_again_and_again_has_not_saved_up_time() -> None:
    bench = Bench()
    bench.ask("a", 1, 50, owner="steady")
    for _ in range(10):
        bench.ask("b", 1, 3, owner="often")
        bench.turns(8)
    assert bench.finish()[:80].count("a") >= 38


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
    bench.turns(1)
    assert bench.scheduler.load == (3, 2)
    log = bench.finish()
    assert log.rindex("L") < log.index("M")
    assert max(log.rindex("x"), log.rindex("y")) < log.rindex("L")
    assert log.index("z") > min(log.rindex("x"), log.rindex("y"))


def test_the_last_slot_is_not_for_who_has_all_others() -> None:
    bench = Bench(short_slots=3, several_owners=True)
    for _ in range(5):
        bench.ask("h", 1, 30, owner="hog")
    bench.turns(1)
    assert bench.scheduler.load == (2, 3)
    bench.ask("g", 1, 2, owner="guest")
    assert bench.finish().rindex("g") < 10


def test_answers_are_whole_and_each_its_own() -> None:
    bench = Bench(short_slots=4)
    jobs = {name: bench.ask(name, 10 + place, 5 + place) for place, name in enumerate("abcdefghij")}
    bench.finish()
    for place, (name, job) in enumerate(jobs.items()):
        told = bench.told[job]
        assert "".join(one.text for one in told) == answer_to(name.encode() * 10, 5 + place)
        assert [one.is_last for one in told].count(True) == 1
        assert told[-1].finish_reason == "length"
    assert bench.engine.open == set()


def test_a_cancelled_request_takes_no_further_step() -> None:
    bench = Bench()
    running = bench.ask("r", 10, 50)
    bench.turns(5)
    waiting = bench.ask("w", 10, 50)
    for job in (running, waiting):
        bench.scheduler.cancel(job)
    assert bench.finish() == "rrrrr"
    assert [code_of(bench.told[job][-1]) for job in (running, waiting)] == ["shutting_down"] * 2
    assert bench.engine.open == set()
    assert bench.scheduler.load == (0, 0)


def test_a_full_queue_refuses_with_the_numbers() -> None:
    bench = Bench(waiting=3, waiting_each=2)
    for name, named, status in (("a", "2 requests of this key", 429), ("b", "3 requests", 503)):
        # The first takes the key's share of the queue, the second what is left.
        while bench.scheduler.load[1] < (2 if name == "a" else 3):
            bench.ask(name, 1, 1, owner=name)
        with pytest.raises(Refusal, match=named) as refusal:
            bench.ask(name, 1, 1, owner=name)
        assert refusal.value.status == status
        assert int(refusal.value.headers["Retry-After"]) >= 1


def test_the_time_to_come_back_is_that_of_requests_and_not_of_all_since_the_start() -> None:
    bench = Bench(short_slots=2, waiting=2)
    bench.ask("a", 1, 9)
    for _ in range(300):
        # There is always one that runs, so no bill begins at nothing.
        bench.ask("a", 1, 9)
        while sum(bench.scheduler.load) > 1:
            bench.turns(1)
    bench.finish()
    for turns in (1, 1, 0, 0):
        bench.ask("w", 1, 9)
        bench.turns(turns)
    with pytest.raises(Refusal) as refusal:
        bench.ask("w", 1, 9)
    # Each takes 10 seconds of the machine, and two wait.
    assert 8 <= int(refusal.value.headers["Retry-After"]) <= 12


def test_draining_finishes_what_is_there() -> None:
    bench = Bench()
    job = bench.ask("a", 4, 4)
    bench.scheduler.drain()
    with pytest.raises(Refusal) as refusal:
        bench.ask("b", 1, 1)
    assert refusal.value.code == "shutting_down"
    bench.finish()
    assert bench.told[job][-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("error", "status", "code", "message"),
    [
        (CheckpointError("a logit is NaN"), 500, "engine_error", "a logit is NaN"),
        (ConfigError("too long"), 400, "invalid_request", "too long"),
        (MemoryError("secret"), 503, "out_of_memory", None),
        (ValueError("secret"), 500, "engine_error", "the engine failed (ValueError)"),
    ],
)
def test_errors_are_told_by_their_kind_and_others_go_on(
    error: Exception, status: int, code: str, message: str | None
) -> None:
    bench = Bench()
    bench.fail_start(lambda first: error if first == ord("x") else None)
    failed, well = bench.ask("x", 4, 4), bench.ask("y", 4, 4)
    bench.finish()
    refusal = bench.told[failed][-1].error
    assert refusal is not None
    assert (refusal.status, refusal.code) == (status, code)
    assert refusal.message == message if message else "secret" not in refusal.message
    assert (refusal.retry_after is not None) == (status == 503)
    assert bench.told[well][-1].finish_reason == "length"


class Delivered(list[Progress]):
    """What a thread delivers."""

    def __init__(self, ends: int = 1) -> None:
        super().__init__()
        self._ends, self._ended = ends, threading.Event()

    def take(self, progress: Progress) -> None:
        self.append(progress)
        if sum(one.is_last for one in self) == self._ends:
            self._ended.set()

    def wait(self) -> list[Progress]:
        assert self._ended.wait(5)
        return [one for one in self if one.is_last]


def request(prompt: bytes, new: int) -> GenerationRequest:
    return GenerationRequest(prompt_ids=list(prompt), max_new_tokens=new)


def test_a_thread_computes_and_ends_with_what_is_left_cut_off() -> None:
    engine = StandIn(token_seconds=0.002)
    scheduler = Scheduler(engine, Turns())
    scheduler.start()
    first, second = Delivered(), Delivered()
    scheduler.submit("-", request(b"ab", 5), first.take)
    first.wait()
    assert "".join(one.text for one in first) == "babab"
    scheduler.submit("-", request(b"ab", 2000), second.take)
    time.sleep(0.1)
    scheduler.stop()
    assert [code_of(one) for one in second.wait()] == ["shutting_down"]
    assert engine.open == set()
    assert not scheduler.is_running
    with pytest.raises(Refusal):
        scheduler.submit("-", request(b"ab", 1), second.take)


def test_when_the_thread_ends_by_a_fault_nobody_waits_for_it(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = StandIn(token_seconds=0.002), Delivered(ends=2)
    start = engine.start

    def spoilt(given: GenerationRequest) -> Generation:
        generation = start(given)
        if given.prompt_ids[0] == ord("x"):
            monkeypatch.setattr(generation, "close", lambda: 1 / 0)
        return generation

    monkeypatch.setattr(engine, "start", spoilt)
    scheduler = Scheduler(engine, Turns())
    for prompt, new in ((b"abc", 2000), (b"x", 1)):
        scheduler.submit("-", request(prompt, new), told.take)
    scheduler.start()
    assert sorted(one.finish_reason or code_of(one) for one in told.wait()) == ["length", "shutting_down"]
    scheduler._thread.join(5)  # type: ignore[union-attr]
    assert not scheduler.is_running
    with pytest.raises(Refusal) as refusal:
        scheduler.submit("-", request(b"a", 1), told.take)
    assert refusal.value.code == "shutting_down"
    assert "the computing thread ended by ZeroDivisionError" in capfd.readouterr().err


def test_a_request_is_told_what_it_cost_and_how_long_it_waited() -> None:
    bench = Bench(short_slots=1)
    first, second, gone = bench.ask("a", 20, 3), bench.ask("b", 10, 2, owner="other"), bench.ask("c", 10, 2)
    # Of the one slot the first has the whole: its prompt of 20 tokens and 3 more take 23 seconds.
    bench.turns(2)
    bench.scheduler.cancel(gone)
    bench.finish()
    # A token that is written is not read again at the end.
    assert (first.cost.wait_seconds, first.cost.compute_seconds) == (0, 23)
    assert (second.cost.wait_seconds, second.cost.compute_seconds) == (23, 12)
    assert (gone.cost.wait_seconds, gone.cost.compute_seconds) == (21, 0)
