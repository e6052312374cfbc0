"""What a pilot may measure, and the seconds that it takes: arithmetic on measured seconds, no model."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from skipwise.report.samples import enough_trials
from skipwise.window import length_label

LEAST_TRIALS = enough_trials(5)
"""Passkeys and questions of each kind and length: with fewer, not even a perfect score is above the bound."""

FEW_TRIALS = 5
"""Passkeys of a small pilot, which prove nothing."""

FACT = "fact"
_MORE_KINDS = ("which_document", "continue")
QUESTIONS = (FACT, *_MORE_KINDS)
"""Kinds of questions, those first that are the least."""

_TEXTS = (2, 4, 8, 16)
_SCORED = 128
# A small pilot has one text, and reads so much of it beside the base.
_SMALL_SHORT, _SMALL_SCORED = 2048, 1024
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
        short: length of the short text that is read beside the base; None for the original window.
        trials: passkeys, and questions of each kind, at each length.
        scored: tokens at the end of a text that perplexity is of, at most half the shortest length.
    """

    texts: int
    perplexity: tuple[int, ...]
    passkeys: tuple[int, ...]
    questions: Mapping[str, tuple[int, ...]]
    serving: tuple[int, ...]
    short: int | None = None
    trials: int = LEAST_TRIALS
    scored: int = _SCORED

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
                yield part(f"questions ({kind.replace('_', ' ')})", task, tokens, each, self.trials)
        for tokens in self.perplexity:
            scored = min(self.scored, min(self.perplexity) // 2)
            task = {"kind": "perplexity", "num_documents": self.texts, "cut_tokens": target, "scored_tokens": scored}
            texts = f"{self.texts} text{'s' if self.texts > 1 else ''}"
            yield part(f"perplexity of {texts}", task, tokens, read(tokens), self.texts)
        short, number = self.short or original, max(4, self.texts)
        task = {"kind": "regression", "num_documents": number, "untrained": False}
        yield part("short text beside the base", task, short, 2 * read(short), number, ARMS - 1)
        for tokens in self.passkeys:
            task = {"kind": "passkey", "trials": self.trials, "num_depths": 5}
            yield part("passkeys", task, tokens, read(tokens), self.trials)
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
        return {tokens: self.trials * lengths.count(tokens) for tokens in set(lengths)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What could be measured, had one the time.

    Attributes:
        original: window of the model, in tokens.
        target: longest length, in tokens.
        texts: held-out documents as long as the target.
        questions: lengths that questions can be made at, by kind.
        shortest_passkey: tokens that a passkey, its question and the instruction take.
        small: whether a pilot is wanted that takes the least time and decides nothing.
    """

    original: int
    target: int
    texts: int
    questions: Mapping[str, tuple[int, ...]]
    shortest_passkey: int = 0
    small: bool = False

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

    @property
    def short(self) -> int:
        """Tokens of short text: the original window; in a small pilot halved until it is at most 2k."""
        tokens = self.original
        while self.small and tokens > _SMALL_SHORT:
            tokens //= 2
        return tokens

    @property
    def validated(self) -> int:
        """Short texts that training is validated on, before and after."""
        return 1 if self.small else _VALIDATED

    def least(self) -> Measures:
        """The least that a decision needs. Without questions at the target, passkeys stand in for them.

        Of a small pilot: perplexity of one text, short text beside the base, a short request.
        """
        if self.small:
            return Measures(
                texts=min(1, self.texts),
                perplexity=(self.short, self.target),
                passkeys=(),
                questions={},
                serving=(self.short,),
                short=self.short,
                trials=FEW_TRIALS,
                scored=_SMALL_SCORED,
            )
        asked = self._asked(FACT, self.ends)
        found = self.target in asked
        return Measures(
            texts=min(_TEXTS[0], self.texts),
            perplexity=self.ends,
            passkeys=() if found else self._hiding(self.ends),
            questions={FACT: asked} if asked else {},
            serving=self.ends,
            trials=LEAST_TRIALS,
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
        if self.small:
            yield from self._small_options()
            return
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
        # A score that is not perfect needs more to be told from another.
        for number in (2 * LEAST_TRIALS, 4 * LEAST_TRIALS):
            add_trials = partial(replace, trials=number)
            yield Option(f"{number} questions or passkeys each", self.ends, add_trials)

    def _small_options(self) -> Iterator["Option"]:
        at = (self.target,)
        yield Option("requests", at, lambda now: replace(now, serving=_with(now.serving, at)))
        yield self._more_texts(_TEXTS[0])
        within = (self.original,)
        yield Option("perplexity", within, lambda now: replace(now, perplexity=_with(now.perplexity, within)))
        if self.target in (both := self._hiding(self.ends)):
            yield Option(f"{FEW_TRIALS} passkeys", both, lambda now: replace(now, passkeys=both))
        yield self._more_texts(_TEXTS[1])

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


def did_not_fit(options: Sequence[Option], texts: int) -> list[str]:
    """One sentence for each kind of what was left out."""
    at: dict[str, list[int]] = {}
    for option in options:
        at.setdefault(option.name, []).extend(option.lengths)
    found = []
    for name, lengths in at.items():
        where = f" at {', '.join(map(length_label, sorted(lengths)))} tokens" if lengths else f" instead of {texts}"
        found.append(f"{name[:1].upper()}{name[1:]}{where} did not fit into the time.")
    return found
