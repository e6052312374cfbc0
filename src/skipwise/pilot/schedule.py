"""How the time of a pilot is split: arithmetic on measured seconds, no model.

    given time = what is used already + evaluation of each arm + training + starts of processes + a reserve

The least that is worth it comes first: questions about the documents at the original window and at the target, so many
that a perfect score can pass; perplexity there; a few tens of steps. What else fits is added in a fixed order.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from skipwise.errors import ConfigError
from skipwise.report.samples import enough_trials
from skipwise.window import length_label

LEAST_TRIALS = enough_trials(5)
"""Passkeys and questions of each kind and length: with fewer, not even a perfect score is above the bound."""

RESERVE = 0.15
"""Share of the time that is not planned for."""

LEAST_STEPS, GOOD_STEPS = 30, 100
LEAST_BATCH = 8
"""Windows a step: with fewer, a window that has grown eightfold has more tokens than a step."""

FACT = "fact"
_MORE_KINDS = ("which_document", "continue")
QUESTIONS = (FACT, *_MORE_KINDS)
"""Kinds of questions, those first that are the least."""

_TEXTS = (2, 4, 8, 16)
# Evaluation beyond the least takes no more than this share of what is left.
_EVALUATED_SHARE = 0.5
# A task's checks, and its share of hashing the model.
_PART_SECONDS = 0.3
_DECODED = 16
_SERVED = 8
_VALIDATED = 4
ARMS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds, measured on this machine.

    Attributes:
        passes: of one pass over an input, by its tokens; others are scaled by `pass_work`.
        pass_work: operations of such a pass.
        token: of one more decoded token.
        windows: of training on one window, by its tokens; others are scaled by `window_work`.
        window_work: operations of training on a window.
        start: of a process until the model is loaded.
        preflight: of the probes before training.
        question: of making one question, by tokens; others are scaled by their length.
    """

    passes: Mapping[int, float]
    pass_work: Callable[[int], float]
    token: float
    windows: Mapping[int, float]
    window_work: Callable[[int], float]
    start: float
    preflight: float
    question: Mapping[int, float]

    def one_pass(self, tokens: int) -> float:
        """One pass over an input."""
        return _scaled(self.passes, self.pass_work, tokens)

    def window(self, tokens: int) -> float:
        """Training on one window."""
        return _scaled(self.windows, self.window_work, tokens)

    def making(self, tokens: int) -> float:
        """Making one question."""
        return _scaled(self.question, float, tokens) if self.question else 0.0


def _scaled(measured: Mapping[int, float], work: Callable[[int], float], tokens: int) -> float:
    """What was measured, or from the next shorter length by the ratio of work."""
    near = max((one for one in measured if one <= tokens), default=min(measured))
    return measured[near] * work(tokens) / work(near)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One task at one length.

    Attributes:
        name: for people: `passkeys at 4k`.
        task: as `evaluate` takes it.
        length: of the input, in tokens.
        seconds: for one arm.
        arms: how many arms it is measured on.
        optional: may be left out when time runs out.
    """

    name: str
    task: Mapping[str, Any]
    length: int
    seconds: float
    arms: int = ARMS
    optional: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from others, whatever its number of samples."""
        return (self.task["kind"], self.task.get("folder", ""), self.length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What is measured on each arm.

    Attributes:
        texts: held-out documents for perplexity.
        perplexity: lengths.
        passkeys: lengths.
        questions: lengths by kind of question.
        serving: lengths of requests.
    """

    texts: int
    perplexity: tuple[int, ...]
    passkeys: tuple[int, ...]
    questions: Mapping[str, tuple[int, ...]]
    serving: tuple[int, ...]

    def parts(self, original: int, target: int, costs: Costs, folder: str = "") -> Iterator[Part]:
        """Every part, those of the least measures first.

        Args:
            original: window of the model, in tokens.
            target: longest length, in tokens.
            costs: seconds.
            folder: with the suite of each kind of question.
        """

        def part(name: str, task: dict[str, Any], tokens: int, each: float, number: int, arms: int = ARMS) -> Part:
            seconds = _PART_SECONDS + number * each
            return Part(name=f"{name} at {length_label(tokens)}", task=task, length=tokens, seconds=seconds, arms=arms)

        def read(tokens: int) -> float:
            return costs.one_pass(tokens)

        for kind, lengths in self.questions.items():
            asks = (read, 2 if kind == "continue" else 1)
            for tokens in lengths:
                each = asks[1] * (asks[0](tokens) + _DECODED * costs.token)
                task = {"kind": "suite", "folder": f"{folder}/{kind}"}
                yield part(f"questions ({kind.replace('_', ' ')})", task, tokens, each, LEAST_TRIALS)
        for tokens in self.perplexity:
            scored = min(128, original // 2)
            task = {"kind": "perplexity", "num_documents": self.texts, "cut_tokens": target, "scored_tokens": scored}
            yield part(f"perplexity of {self.texts} texts", task, tokens, read(tokens), self.texts)
        short = {"kind": "regression", "num_documents": max(4, self.texts), "untrained": False}
        yield part("short text beside the base", short, original, 2 * read(original), max(4, self.texts), ARMS - 1)
        for tokens in self.passkeys:
            task = {"kind": "passkey", "trials": LEAST_TRIALS, "num_depths": 5}
            yield part("passkeys", task, tokens, read(tokens), LEAST_TRIALS)
        for tokens in self.serving:
            once = read(tokens) * 4 > 60  # Seconds; a long request is timed once.
            task = {"kind": "serving", "new_tokens": _SERVED, "repeats": 1 if once else 3, "warm_ups": 0 if once else 1}
            yield part("requests", task, tokens, read(tokens) + _SERVED * costs.token, 1 if once else 4, 1)

    def seconds(self, original: int, target: int, costs: Costs) -> float:
        """Of all arms together."""
        return sum(part.seconds * part.arms for part in self.parts(original, target, costs))

    def num_questions(self) -> dict[int, int]:
        """Questions to make, by length."""
        lengths = [tokens for of_kind in self.questions.values() for tokens in of_kind]
        return {tokens: LEAST_TRIALS * lengths.count(tokens) for tokens in set(lengths)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What could be measured, had one the time.

    Attributes:
        original: window of the model, in tokens.
        target: longest length, in tokens.
        texts: held-out documents as long as the target.
        questions: lengths that questions can be made at, by kind.
        shortest_passkey: tokens that a passkey, its question and the instruction take.
    """

    original: int
    target: int
    texts: int
    questions: Mapping[str, tuple[int, ...]]
    shortest_passkey: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """From the original window to the target, doubling."""
        lengths = [self.original]
        while lengths[-1] * 2 < self.target:
            lengths.append(lengths[-1] * 2)
        return (*lengths, self.target)

    @property
    def ends(self) -> tuple[int, int]:
        """The original window and the target."""
        return (self.original, self.target)

    def least(self) -> Measures:
        """The least that a decision needs. Without questions at the target, passkeys stand in for them."""
        asked = self._asked(FACT, self.ends)
        found = self.target in asked
        return Measures(
            texts=min(_TEXTS[0], self.texts),
            perplexity=self.ends,
            passkeys=() if found else self._hiding(self.ends),
            questions={FACT: asked} if asked else {},
            serving=self.ends,
        )

    def only(self, kinds: Collection[str]) -> "Wanted":
        """The same with questions of these kinds alone."""
        return replace(self, questions={kind: self.questions[kind] for kind in kinds if kind in self.questions})

    def without(self, measures: Measures, kind: str) -> Measures:
        """What is measured if there are no questions of a kind; passkeys stand in for the most important one."""
        questions = {name: lengths for name, lengths in measures.questions.items() if name != kind}
        passkeys = measures.passkeys or self.only(questions).least().passkeys
        return replace(measures, questions=questions, passkeys=passkeys)

    def parts(self, measures: Measures, costs: Costs, folder: str = "") -> list[Part]:
        """What is measured, those first that must be; `folder` as in `Measures.parts`."""
        must = {part.key for part in self.least().parts(*self.ends, costs, folder)}
        parts = [replace(one, optional=one.key not in must) for one in measures.parts(*self.ends, costs, folder)]
        return sorted(parts, key=lambda part: part.optional)

    def options(self) -> Iterator["Option"]:
        """What may be added, the most useful first."""
        between = [tokens for tokens in self.lengths if tokens not in self.ends]
        if both := self._hiding(self.ends):
            yield Option("passkeys", both, lambda now: replace(now, passkeys=both))
        yield from map(self._more_texts, _TEXTS[1:3])
        for tokens in reversed(between):
            at = (tokens,)
            yield Option("perplexity", at, lambda now, at=at: replace(now, perplexity=_with(now.perplexity, at)))
            yield Option("requests", at, lambda now, at=at: replace(now, serving=_with(now.serving, at)))
            if asked := self._asked(FACT, at):
                yield self._more_questions(FACT, asked)
            if hiding := self._hiding(at):
                add = partial(_more_passkeys, lengths=hiding)
                yield Option("passkeys", hiding, add)
        for kind in _MORE_KINDS:
            if asked := self._asked(kind, self.ends):
                yield self._more_questions(kind, asked)
        yield self._more_texts(_TEXTS[-1])

    def _more_texts(self, number: int) -> "Option":
        number = min(number, self.texts)
        return Option(f"perplexity of {number} texts", (), lambda now: replace(now, texts=number))

    def _more_questions(self, kind: str, lengths: tuple[int, ...]) -> "Option":
        def add(now: Measures) -> Measures:
            asked = _with(now.questions.get(kind, ()), lengths)
            return replace(now, questions={**now.questions, kind: asked})

        return Option(f"questions ({kind.replace('_', ' ')})", lengths, add)

    def _hiding(self, lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(tokens for tokens in lengths if tokens >= self.shortest_passkey)

    def _asked(self, kind: str, lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(tokens for tokens in lengths if tokens in self.questions.get(kind, ()))


def _with(lengths: Sequence[int], more: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({*lengths, *more}))


def _more_passkeys(now: Measures, lengths: Sequence[int]) -> Measures:
    return replace(now, passkeys=_with(now.passkeys, lengths))


class Option(NamedTuple):
    """Something that may be measured besides the least.

    Attributes:
        name: what it is.
        lengths: of its inputs, in tokens; none if it is of all.
        add: puts it into what is measured.
    """

    name: str
    lengths: tuple[int, ...]
    add: Callable[[Measures], Measures]


def _did_not_fit(options: Sequence[Option], texts: int) -> list[str]:
    """One sentence for each kind of what was left out."""
    at: dict[str, list[int]] = {}
    for option in options:
        at.setdefault(option.name, []).extend(option.lengths)
    found = []
    for name, lengths in at.items():
        where = f" at {', '.join(map(length_label, sorted(lengths)))} tokens" if lengths else f" instead of {texts}"
        found.append(f"{name[:1].upper()}{name[1:]}{where} did not fit into the time.")
    return found


TrainingSeconds = Callable[[int, int], float]
"""Seconds of a number of steps of a number of windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Training that fits into a time.

    Attributes:
        seconds_of: of a number of steps with a number of windows each.
        most_steps: of the full run.
        batches: windows a step that may be chosen, the largest first.
    """

    seconds_of: TrainingSeconds
    most_steps: int
    batches: Sequence[int]

    @property
    def least(self) -> float:
        """Seconds of the least steps that are worth it."""
        return self.seconds_of(min(LEAST_STEPS, self.most_steps), self.batches[-1])

    @property
    def most(self) -> float:
        """Seconds of the full run."""
        return self.seconds_of(self.most_steps, self.batches[0])

    def fitting(self, seconds: float) -> tuple[int, int]:
        """Steps, and windows a step, that fit: the largest batch that leaves a hundred steps, else the smallest.

        Never fewer than the least steps, whether or not they fit.
        """
        enough = min(GOOD_STEPS, self.most_steps)
        for batch in self.batches:
            if self.seconds_of(enough, batch) <= seconds:
                return self.steps(seconds, batch), batch
        return self.steps(seconds, self.batches[-1]), self.batches[-1]

    def steps(self, seconds: float, batch: int) -> int:
        """The most steps of so many windows that fit, at least the least."""
        low, high = min(LEAST_STEPS, self.most_steps), self.most_steps
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.seconds_of(middle, batch) <= seconds else (low, middle - 1)
        return low


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the time is split.

    Attributes:
        seconds_given: in all.
        seconds_used: before the first arm.
        measures: what is measured on each arm.
        steps: of training; decided again when training begins, by what the arms before it took.
        batch: windows a step.
        rows: what takes how long: name, seconds, what it is.
        left_out: one sentence each.
    """

    seconds_given: float
    seconds_used: float
    measures: Measures
    steps: int
    batch: int
    rows: Sequence[tuple[str, float, str]] = ()
    left_out: Sequence[str] = field(default=())


class TooShortError(ConfigError):
    """The time given is too short; the message has the least."""


def fixed_seconds(wanted: Wanted, measures: Measures, costs: Costs) -> dict[str, float]:
    """What neither evaluates nor trains, by name."""
    validated = 2 * _VALIDATED * costs.one_pass(wanted.original)
    return {
        "making the questions": sum(n * costs.making(tokens) for tokens, n in measures.num_questions().items()),
        "base": costs.start,
        "interpolation only": costs.start,
        # Two starts, preflight, saving and reading again.
        "training": 2 * costs.start + costs.preflight + costs.start / 2 + validated,
        "the page": 10.0,
    }


def least_seconds(used: float, wanted: Wanted, costs: Costs, training: Training) -> float:
    """The least time that a pilot needs, with what is used already."""
    least = wanted.least()
    need = least.seconds(*wanted.ends, costs) + sum(fixed_seconds(wanted, least, costs).values()) + training.least
    return (used + need) / (1 - RESERVE)


def make_schedule(given: float, used: float, wanted: Wanted, costs: Costs, training: Training) -> Schedule:
    """Splits the time.

    Args:
        given: seconds in all.
        used: seconds that have passed.
        wanted: what could be measured.
        costs: what that takes.
        training: what training takes.

    Raises:
        TooShortError: it is less than `least_seconds`.
    """
    least = least_seconds(used, wanted, costs, training)
    if given < least:
        raise TooShortError(f"the least is {duration_label(least)}")
    measures, missing = wanted.least(), list[Option]()

    def left_for_training(chosen: Measures) -> float:
        taken = chosen.seconds(*wanted.ends, costs) + sum(fixed_seconds(wanted, chosen, costs).values())
        return given * (1 - RESERVE) - used - taken

    kept = max(training.least, min(training.most, _EVALUATED_SHARE * left_for_training(measures)))
    for option in wanted.options():
        more = option.add(measures)
        if more == measures:
            continue
        if left_for_training(more) >= kept:
            measures = more
        else:
            missing.append(option)
    steps, batch = training.fitting(left_for_training(measures))
    return Schedule(
        seconds_given=given,
        seconds_used=used,
        measures=measures,
        steps=steps,
        batch=batch,
        rows=_rows(given, used, wanted, measures, costs, training.seconds_of(steps, batch), (steps, batch)),
        left_out=_did_not_fit(missing, measures.texts),
    )


def _rows(
    given: float,
    used: float,
    wanted: Wanted,
    measures: Measures,
    costs: Costs,
    trained: float,
    of_steps: tuple[int, int],
) -> list[tuple[str, float, str]]:
    parts, fixed = list(measures.parts(*wanted.ends, costs)), fixed_seconds(wanted, measures, costs)

    def measuring(arms: int) -> tuple[float, str]:
        chosen = [part for part in parts if part.arms >= arms]
        at: dict[str, list[int]] = {}
        for part in chosen:
            at.setdefault(part.name.rpartition(" at ")[0], []).append(part.length)
        names = (f"{name} at {', '.join(map(length_label, sorted(lengths)))}" for name, lengths in at.items())
        return sum(part.seconds for part in chosen), "; ".join(names)

    rows = [("documents, preflight, measuring", used, "done")]
    rows.append(("questions", fixed["making the questions"], f"{sum(measures.num_questions().values())} are made"))
    for name, arms in (("base", 3), ("interpolation only", 2)):
        seconds, what = measuring(arms)
        rows.append((name, fixed[name] + seconds, what))
    rows.append(("training", fixed["training"] + trained, f"{of_steps[0]} steps of {of_steps[1]} windows"))
    seconds, what = measuring(1)
    rows.append(("extended", seconds, what))
    rows.append(("page", fixed["the page"], ""))
    rows.append(("reserve", given - sum(row[1] for row in rows), ""))
    return rows


def longest_target(given: float, used: float, wanted: Wanted, costs: Costs, training: Training) -> int | None:
    """The longest target below the wanted one that the time would do for, in doublings of the window; None if none."""
    for tokens in reversed(wanted.lengths[1:-1]):
        if least_seconds(used, replace(wanted, target=tokens), costs, training) <= given:
            return tokens
    return None


def duration_label(seconds: float) -> str:
    """A duration in the notation of `--time`, rounded up: `90s`, `12m`, `2h40m`."""
    if seconds <= 90:
        return f"{math.ceil(seconds)}s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")


def minutes(seconds: float) -> str:
    """A duration for people: `45 s`, `4 min 36 s`, `2 h 40 min`."""
    whole = round(max(0.0, seconds))
    if whole < 90:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
