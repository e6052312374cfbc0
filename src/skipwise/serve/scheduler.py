"""Fair turns: one engine, many requests, one step at a time.

A step is one chunk of a prompt or one token. Where the engine can, a step that makes a token makes those of other
requests, too. The time of each step is added to the bill of the request whose turn it is and of its owner, the holder
of a key; others come along for nothing, since they add little to its time. The next step goes to the owner with the
smallest bill, and among that owner's requests to the one with the smallest. So every owner gets an equal share of the
machine, whatever they ask for, and a request of 128k tokens delays a short one by one step at most. (This is fair
queueing with costs known afterwards; deficit round robin would have to guess them.) An owner who comes anew starts at
the smallest bill: idle time earns no credit.

Waiting requests hold no memory. At most `short_slots` requests run in short mode and `long_slots` in long mode, so that
neither kind keeps the other out.
"""

import contextlib
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from skipwise.errors import ConfigError, SkipwiseError
from skipwise.inference.engine import MODES, Engine, FinishReason, Generation, GenerationRequest, Mode
from skipwise.serve.refusals import Refusal, overloaded, shutting_down


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is new of a request; the last one says why it ended, or what the client is told of a failure."""

    text: str = ""
    tokens: int = 0
    finish_reason: FinishReason | None = None
    error: Refusal | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.error is not None


@dataclass(slots=True, kw_only=True)
class Cost:
    """What a request has taken of the machine so far.

    Attributes:
        wait_seconds: in the queue, until its first step or until it gave up; None before that, and for a request that
            the queue refused.
        compute_seconds: of its steps, without the time between them, and its share of those with others; None where
            another server computes (vLLM, llama.cpp).
    """

    wait_seconds: float | None = None
    compute_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How requests share the machine.

    Attributes:
        fair: the smallest bill first; otherwise each request runs to its end, in order of arrival and alone.
        short_slots, long_slots: most requests of each mode that run at once; their caches are the memory that serving
            takes beside the model.
        waiting: most requests that wait, of all owners.
        waiting_each: most requests of one owner that wait.
        several_owners: keep the last slot of each mode from an owner who has all the others.
    """

    fair: bool = True
    short_slots: int = 16
    long_slots: int = 2
    waiting: int = 128
    waiting_each: int = 64
    several_owners: bool = False

    def slots(self, mode: Mode) -> int:
        """Most requests of a mode that run at once."""
        return self.short_slots if mode == "short" else self.long_slots

    def check_queue(self, waiting: int, own: int, mean_seconds: float) -> None:
        """Refuses a request if too many wait: 503 if the queue is full, 429 if the owner's share of it is.

        The mean seconds of a request and the number that wait say when to try again.
        """

        def seconds(requests: int) -> float:
            return min(60.0, max(1.0, mean_seconds * requests / 2))

        if waiting >= self.waiting:
            raise overloaded(f"{waiting} requests are waiting and {self.waiting} may", seconds(waiting))
        if own >= self.waiting_each:
            message = f"{own} requests of this key are waiting and {self.waiting_each} may; try again later"
            raise Refusal(429, message, code="too_many_requests", retry_after=seconds(own))


@dataclass(slots=True, eq=False)
class Job:
    """A request in the scheduler's hands.

    `bill` decides turns within the owner: seconds of the machine, on top of the smallest bill when it was let in.
    """

    owner: str
    request: GenerationRequest
    mode: Mode
    deliver: Callable[[Progress], None]
    number: int = 0
    bill: float = 0.0
    submitted: float = 0.0
    cost: Cost = field(default_factory=Cost)
    generation: Generation | None = None
    is_cancelled: bool = False


@dataclass(slots=True)
class _Owner:
    bill: float = 0.0
    running: list[Job] = field(default_factory=list)
    waiting: dict[Mode, deque[Job]] = field(default_factory=lambda: {"short": deque(), "long": deque()})

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    @property
    def jobs(self) -> Iterator[Job]:
        return itertools.chain(self.running, *self.waiting.values())

    def num_running(self, mode: Mode) -> int:
        return sum(job.mode == mode for job in self.running)


class Scheduler:
    """Runs requests on an engine, in a thread that alone calls its generations. `clock` bills steps, in seconds."""

    def __init__(self, engine: Engine, turns: Turns, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._turns, self._clock = engine, turns, clock
        self._lock = threading.Condition()
        self._owners: dict[str, _Owner] = {}
        self._numbers = itertools.count(1)
        self._is_draining = self._is_stopped = False
        self._mean_seconds = 1.0
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether the computing thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        with self._lock:
            owners = self._owners.values()
            return sum(len(owner.running) for owner in owners), sum(owner.num_waiting for owner in owners)

    def submit(
        self, owner: str, request: GenerationRequest, deliver: Callable[[Progress], None], cost: Cost | None = None
    ) -> Job:
        """Puts a request into the queue of an owner, the id of a key.

        `deliver` gets what is new, in the computing thread, until the last; `cost` is kept up to date.

        Raises:
            Refusal: 503, the queue is full or the server stops; 429, the owner's share of the queue is full.
            ConfigError: the request is too long.
        """
        job = Job(owner, request, self._engine.mode_of(request), deliver, cost=cost or Cost())
        with self._lock:
            if self._is_draining or self._is_stopped:
                raise shutting_down()
            own = self._owners[owner].num_waiting if owner in self._owners else 0
            self._turns.check_queue(sum(one.num_waiting for one in self._owners.values()), own, self._mean_seconds)
            job.number, job.submitted, job.cost.compute_seconds = next(self._numbers), self._clock(), 0.0
            if owner not in self._owners:
                self._owners[owner] = _Owner(bill=min((one.bill for one in self._owners.values()), default=0.0))
            self._owners[owner].waiting[job.mode].append(job)
            self._lock.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Stops a request before its next step, unless it has ended. Any thread may call this."""
        with self._lock:
            job.is_cancelled = True
            if job.cost.wait_seconds is None:
                job.cost.wait_seconds = self._clock() - job.submitted
            self._lock.notify()

    def turn(self) -> bool:
        """Lets waiting requests in, and runs one step of one request, in which others may have a part.

        Returns whether there was anything to do.
        """
        with self._lock:
            dropped = self._drop_cancelled()
            for mode in MODES:
                self._admit(mode)
            job = self._next_job()
            others = self._beside(job)
        self._cut_off(dropped)
        if job is None:
            return bool(dropped)
        began = self._clock()
        if job.cost.wait_seconds is None:
            job.cost.wait_seconds = began - job.submitted
        stepped = self._step(job, others)
        seconds = self._clock() - began
        with self._lock:
            job.bill += seconds
            self._owners[job.owner].bill += seconds
            for one, progress in stepped.items():
                one.cost.compute_seconds = total = (one.cost.compute_seconds or 0.0) + seconds / len(stepped)
                if progress.is_last:
                    self._owners[one.owner].running.remove(one)
                    self._mean_seconds += 0.1 * (total - self._mean_seconds)
            self._forget_idle()
        for one, progress in stepped.items():
            if progress.is_last:
                self._end(one, progress)
            elif progress.tokens or progress.text:
                one.deliver(progress)
        return True

    def start(self) -> None:
        """Starts the computing thread."""
        self._thread = threading.Thread(target=self._run, name="skipwise-compute", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Refuses new requests from now on; those that are here go on."""
        with self._lock:
            self._is_draining = True

    def stop(self) -> None:
        """Ends the thread after its step, and cuts off what still runs."""
        with self._lock:
            self._is_stopped = True
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()
        self._cut_off_all()

    def _cut_off_all(self) -> None:
        with self._lock:
            left = [job for owner in self._owners.values() for job in owner.jobs]
            self._owners.clear()
        for job in left:
            with contextlib.suppress(Exception):
                self._cut_off([job])

    def _run(self) -> None:
        try:
            while True:
                is_busy = self.turn()
                with self._lock:
                    if self._is_stopped:
                        return
                    if not is_busy and not self._owners:
                        self._lock.wait()
        except Exception as error:
            # Errors of requests do not come here. Without this thread nobody is answered, so nobody may wait for it.
            print(
                f"skipwise: the computing thread ended by {type(error).__name__}; restart the server", file=sys.stderr
            )
            with self._lock:
                self._is_stopped = True
            self._cut_off_all()

    def _step(self, job: Job, others: Sequence[Job]) -> dict[Job, Progress]:
        """One step, and what it brought to the job and to others; the first one also starts the generation."""
        try:
            if job.generation is None:
                job.generation = self._engine.start(job.request)
            jobs = {one.generation: one for one in (job, *others) if one.generation is not None}
            new = self._engine.step(job.generation, [*jobs][1:])
        except Exception as error:
            return {job: Progress(error=_refusal(error))}
        return {jobs[generation]: self._progress(generation, tokens) for generation, tokens in new.items()}

    @staticmethod
    def _progress(generation: Generation, new: list[int] | Exception) -> Progress:
        try:
            if isinstance(new, Exception):
                raise new
            text = generation.take_text()
        except Exception as error:
            return Progress(error=_refusal(error))
        reason = (generation.finish_reason or "stop") if generation.is_done else None
        return Progress(text=text, tokens=len(new), finish_reason=reason)

    def _beside(self, job: Job | None) -> list[Job]:
        """Who may have a part in the step of this job: others of its mode that have begun."""
        if job is None or not self._turns.fair:
            return []
        running = (one for owner in self._owners.values() for one in owner.running)
        return [one for one in running if one is not job and one.mode == job.mode and one.generation is not None]

    def _cut_off(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._end(job, Progress(error=shutting_down("the server shut down before the answer was complete")))

    @staticmethod
    def _end(job: Job, progress: Progress) -> None:
        generation, job.generation = job.generation, None
        try:
            if generation is not None:
                generation.close()
        finally:
            job.deliver(progress)

    def _next_job(self) -> Job | None:
        """Whose turn it is; among equals, the one that came first."""
        if not self._turns.fair:
            running = (job for owner in self._owners.values() for job in owner.running)
            return min(running, key=lambda job: job.number, default=None)
        owners = (owner for owner in self._owners.values() if owner.running)
        owner = min(owners, key=lambda one: (one.bill, min(job.number for job in one.running)), default=None)
        return min(owner.running, key=lambda job: (job.bill, job.number)) if owner else None

    def _admit(self, mode: Mode) -> None:
        """Fills the slots of a mode: first from the owner with the fewest running, then with the smallest bill."""
        slots = self._turns.slots(mode)
        each = slots - 1 if self._turns.several_owners and slots > 1 else slots

        def rank(owner: _Owner) -> tuple[float, ...]:
            arrival = owner.waiting[mode][0].number
            return (owner.num_running(mode), owner.bill, arrival) if self._turns.fair else (arrival,)

        for _ in range(slots - sum(owner.num_running(mode) for owner in self._owners.values())):
            able = [one for one in self._owners.values() if one.waiting[mode] and one.num_running(mode) < each]
            if not able:
                return
            owner = min(able, key=rank)
            job = owner.waiting[mode].popleft()
            job.bill = min((one.bill for one in owner.running), default=0.0)
            if not owner.running:
                # No credit for the time without a running request.
                active = (one.bill for one in self._owners.values() if one.running)
                owner.bill = max(owner.bill, min(active, default=owner.bill))
            owner.running.append(job)

    def _drop_cancelled(self) -> list[Job]:
        dropped = [job for owner in self._owners.values() for job in owner.jobs if job.is_cancelled]
        for job in dropped:
            owner = self._owners[job.owner]
            (owner.running if job in owner.running else owner.waiting[job.mode]).remove(job)
        self._forget_idle()
        return dropped

    def _forget_idle(self) -> None:
        """Owners without a request count as new when they come again."""
        self._owners = {name: owner for name, owner in self._owners.items() if next(owner.jobs, None)}


def _refusal(error: Exception) -> Refusal:
    """What the client is told of a failed step."""
    if isinstance(error, ConfigError):
        return Refusal(400, str(error), code="invalid_request")
    if isinstance(error, SkipwiseError):
        # The package's own words about the model, such as a NaN logit.
        return Refusal(500, str(error), code="engine_error")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Refusal(503, "memory ran out; ask for fewer tokens, or later", code="out_of_memory", retry_after=30)
    # Its message may hold text of the prompt: only the type is told.
    return Refusal(500, f"the engine failed ({type(error).__name__})", code="engine_error")
