"""Fair turns: one thread that computes, and requests that take turns of single steps.

A step is one chunk of a prompt or one token. After each step its time is put on the bill of its request and of its
owner (the holder of a key); the next step goes to the owner with the smallest bill, and of that owner's requests to the
one with the smallest. So every owner gets the same share of the machine, whatever their requests are like, and a
request of 128k tokens delays a short one by no more than one step. (This is fair queueing with the cost known
afterwards, where deficit round robin would have to guess it beforehand.) Whoever comes anew starts at the smallest bill
there is: time when nothing was asked is not saved up.

Requests that wait hold no memory. Those that run are at most `short_slots` in the base model's window and `long_slots`
beyond it, apart from each other, so neither kind can keep the other out.
"""

import contextlib
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from skipwise.errors import ConfigError, SkipwiseError
from skipwise.inference.engine import MODES, Engine, FinishReason, Generation, GenerationRequest, GenerationStats, Mode
from skipwise.serve.refusals import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What became of a request since the last time.

    Attributes:
        text: that is new.
        tokens: how many are new.
        finish_reason: why it ended; None while it is on its way.
        stats: at its end.
        error: what a client is told where it failed.
    """

    text: str = ""
    tokens: int = 0
    finish_reason: FinishReason | None = None
    stats: GenerationStats | None = None
    error: Refusal | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How requests share the machine.

    Attributes:
        fair: the smallest bill first; otherwise each request runs to its end in the order of arrival.
        short_slots, long_slots: requests of each mode that may run at once; what they hold of the cache is the memory
            that serving takes.
        waiting: requests of all owners that may wait.
        waiting_each: of one owner.
        several_owners: keep the last slot of each mode for others than an owner who has all before it.
    """

    fair: bool = True
    short_slots: int = 16
    long_slots: int = 2
    waiting: int = 128
    waiting_each: int = 64
    several_owners: bool = False

    def slots(self, mode: Mode) -> int:
        """Requests of a mode that may run at once."""
        return self.short_slots if mode == "short" else self.long_slots


@dataclass(slots=True, eq=False)
class Job:
    """A request in the scheduler's hands.

    Attributes:
        owner: id of the key.
        request: what to generate.
        mode: that it will be served in.
        deliver: takes what is new, in the computing thread.
        number: in order of arrival.
        bill: that turns are given by: seconds of the machine, on top of the smallest bill of its owner's others.
        seconds: of the machine that it took.
        generation: while it runs.
        cancelled: whether somebody has had enough of it.
    """

    owner: str
    request: GenerationRequest
    mode: Mode
    deliver: Callable[[Progress], None]
    number: int = 0
    bill: float = 0.0
    seconds: float = 0.0
    generation: Generation | None = None
    cancelled: bool = False


@dataclass(slots=True)
class _Owner:
    bill: float = 0.0
    running: list[Job] = field(default_factory=list)
    waiting: dict[Mode, deque[Job]] = field(default_factory=lambda: {"short": deque(), "long": deque()})

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    def num_running(self, mode: Mode) -> int:
        return sum(job.mode == mode for job in self.running)


class Scheduler:
    """Runs requests of an engine.

    Args:
        engine: whatever generates; only this scheduler's thread calls its generations.
        turns: how requests share it.
        clock: seconds that steps are billed by.
    """

    def __init__(self, engine: Engine, turns: Turns, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._turns, self._clock = engine, turns, clock
        self._lock = threading.Condition()
        self._owners: dict[str, _Owner] = {}
        self._numbers = itertools.count(1)
        self._draining = self._stopped = False
        self._mean_seconds = 1.0
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a thread that computes."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def num_running(self) -> int:
        """Requests that take turns."""
        with self._lock:
            return sum(len(owner.running) for owner in self._owners.values())

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        with self._lock:
            return sum(owner.num_waiting for owner in self._owners.values())

    def submit(self, owner: str, request: GenerationRequest, deliver: Callable[[Progress], None]) -> Job:
        """Puts a request into the queue.

        Args:
            owner: id of the key it came with.
            request: what to generate.
            deliver: takes what is new, in the computing thread, until one that is the last.

        Raises:
            Refusal: 503, the queue is full or the server stops; 429, the owner's own share of it is full.
            ConfigError: the request is too long.
        """
        job = Job(owner, request, self._engine.mode_of(request), deliver)
        with self._lock:
            if self._draining or self._stopped:
                raise Refusal(503, "the server is shutting down; ask again soon", code="shutting_down", retry_after=5)
            waiting = sum(one.num_waiting for one in self._owners.values())
            if waiting >= self._turns.waiting:
                raise Refusal(
                    503,
                    f"{waiting} requests are waiting, and {self._turns.waiting} may; try again later",
                    code="overloaded",
                    retry_after=self._seconds_of_waiting(waiting),
                )
            own = self._owners[owner].num_waiting if owner in self._owners else 0
            if own >= self._turns.waiting_each:
                raise Refusal(
                    429,
                    f"{own} requests of this key are waiting, and {self._turns.waiting_each} may; try again later",
                    code="too_many_requests",
                    retry_after=self._seconds_of_waiting(own),
                )
            job.number = next(self._numbers)
            if owner not in self._owners:
                self._owners[owner] = _Owner(bill=min((one.bill for one in self._owners.values()), default=0.0))
            self._owners[owner].waiting[job.mode].append(job)
            self._lock.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Stops a request before its next step; it may have ended already. Any thread may call this."""
        with self._lock:
            job.cancelled = True
            self._lock.notify()

    def turn(self) -> bool:
        """Lets in what may run, and runs one step of one request.

        Returns:
            Whether there was anything to do.
        """
        with self._lock:
            dropped = self._drop_cancelled()
            for mode in MODES:
                self._admit(mode)
            job = self._next_job()
        for one in dropped:
            self._end(one, Progress(finish_reason="closed"))
        if job is None:
            return bool(dropped)
        began = self._clock()
        progress = self._step(job)
        cost = self._clock() - began
        with self._lock:
            job.bill += cost
            job.seconds += cost
            self._owners[job.owner].bill += cost
            if progress.is_last:
                self._owners[job.owner].running.remove(job)
                self._forget_idle()
                self._mean_seconds += 0.1 * (job.seconds - self._mean_seconds)
        if progress.is_last:
            self._end(job, progress)
        elif progress.tokens or progress.text:
            job.deliver(progress)
        return True

    def start(self) -> None:
        """Begins to compute, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="skipwise-compute", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Takes no request from now on; those that are here go on."""
        with self._lock:
            self._draining = True

    def stop(self) -> None:
        """Ends the thread after its step; what still runs ends with the reason `closed`."""
        with self._lock:
            self._stopped = True
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()
        self._close_all()

    def _close_all(self) -> None:
        with self._lock:
            left = [job for owner in self._owners.values() for job in self._jobs_of(owner)]
            self._owners.clear()
        for job in left:
            with contextlib.suppress(Exception):
                self._end(job, Progress(finish_reason="closed"))

    def _run(self) -> None:
        try:
            while True:
                busy = self.turn()
                with self._lock:
                    if self._stopped:
                        return
                    if not busy and not self._owners:
                        self._lock.wait()
        except Exception as error:
            # Errors of requests do not come here. Without this thread nobody is answered: nobody is to wait for it.
            print(
                f"skipwise: the computing thread ended by {type(error).__name__}; restart the server", file=sys.stderr
            )
            with self._lock:
                self._stopped = True
            self._close_all()

    def _step(self, job: Job) -> Progress:
        """One step, and what it brought; the first one also makes the generation."""
        try:
            if job.generation is None:
                job.generation = self._engine.start(job.request)
            generation = job.generation
            new = generation.step()
            text = generation.take_text()
            if not generation.is_done:
                return Progress(text=text, tokens=len(new))
            reason = generation.finish_reason or "stop"
            return Progress(text=text, tokens=len(new), finish_reason=reason, stats=generation.stats)
        except ConfigError as error:
            return Progress(error=Refusal(400, str(error), code="invalid_request"))
        except SkipwiseError as error:
            # Words of our own about the model, such as a logit that is NaN.
            return Progress(error=Refusal(500, str(error), code="engine_error"))
        except Exception as error:
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                short = Refusal(
                    503, "memory ran out; ask for fewer tokens, or later", code="out_of_memory", retry_after=30
                )
                return Progress(error=short)
            # Its message may hold text of the prompt: only the kind is told.
            return Progress(error=Refusal(500, f"the engine failed ({type(error).__name__})", code="engine_error"))

    @staticmethod
    def _end(job: Job, progress: Progress) -> None:
        generation, job.generation = job.generation, None
        try:
            if generation is not None:
                generation.close()
        finally:
            job.deliver(progress)

    def _next_job(self) -> Job | None:
        """Whose turn it is; among equals, who came first."""
        if not self._turns.fair:
            running = (job for owner in self._owners.values() for job in owner.running)
            return min(running, key=lambda job: job.number, default=None)
        owners = (owner for owner in self._owners.values() if owner.running)
        owner = min(owners, key=lambda one: (one.bill, min(job.number for job in one.running)), default=None)
        return min(owner.running, key=lambda job: (job.bill, job.number)) if owner else None

    def _admit(self, mode: Mode) -> None:
        """Fills the slots of a mode: first of who has the fewest running, then of who has the smallest bill."""
        slots = self._turns.slots(mode)
        each = slots - 1 if self._turns.several_owners and slots > 1 else slots
        free = slots - sum(owner.num_running(mode) for owner in self._owners.values())
        for _ in range(free):
            able = [one for one in self._owners.values() if one.waiting[mode] and one.num_running(mode) < each]
            if not able:
                return
            ranks = [
                (one.num_running(mode), one.bill, one.waiting[mode][0].number)
                if self._turns.fair
                else (one.waiting[mode][0].number,)
                for one in able
            ]
            self._let_in(able[ranks.index(min(ranks))], mode)

    def _let_in(self, owner: _Owner, mode: Mode) -> None:
        job = owner.waiting[mode].popleft()
        job.bill = min((one.bill for one in owner.running), default=0.0)
        if not owner.running:
            # No credit for the time without a request that ran.
            active = (one.bill for one in self._owners.values() if one.running)
            owner.bill = max(owner.bill, min(active, default=owner.bill))
        owner.running.append(job)

    def _drop_cancelled(self) -> list[Job]:
        dropped = [job for owner in self._owners.values() for job in self._jobs_of(owner) if job.cancelled]
        for job in dropped:
            owner = self._owners[job.owner]
            (owner.running if job in owner.running else owner.waiting[job.mode]).remove(job)
        self._forget_idle()
        return dropped

    def _forget_idle(self) -> None:
        """Owners without a request are as good as new ones, when they come again."""
        for name in [name for name, owner in self._owners.items() if not next(self._jobs_of(owner), None)]:
            del self._owners[name]

    @staticmethod
    def _jobs_of(owner: _Owner) -> Iterator[Job]:
        yield from owner.running
        for queue in owner.waiting.values():
            yield from queue

    def _seconds_of_waiting(self, requests: int) -> float:
        """A guess at when a place is free: the time a request takes of the machine, times those before."""
        return min(60.0, max(1.0, self._mean_seconds * requests / 2))
