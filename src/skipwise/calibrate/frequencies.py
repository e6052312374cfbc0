"""Search for rotary frequencies before training: by how well the untrained model repeats needles at the target.

    found = search_frequencies(model, tokenizer, documents, window, search=FrequencySearch(kind="longrope"))
    found.settings    # of `interpolation` in a run

Rules such as YaRN's know the model's window and nothing of its weights. Here the model itself is asked: an
interpolation is as good as the likelihood of the answers to passkeys at the target. Perplexity of all tokens would say
little, since nearly all of them follow from the text just before.

- `longrope`: a divisor for each pair of dimensions, by an evolutionary search in which divisors never fall from fast
  pairs to slow ones.
- `yarn`: the two bounds of its ramp, its factor and its attention factor, one after the other.

Both begin with YaRN as its rule has it, so what they find is no worse on the needles of the search. Whether it is
better is judged on other needles: without a measurable gain, YaRN stays.

Source: LongRoPE2 (arXiv 2502.20082) for needles as the measure and for the evolutionary search, LongRoPE
(arXiv 2402.13753) for divisors that never fall. Deviations: needles are passkeys, half of them in the model's own
documents; no bound by a critical dimension; a judgement on other needles.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from skipwise.bars import Bar
from skipwise.distributed import process_state
from skipwise.errors import CheckpointError, ConfigError
from skipwise.evals.prompts import texts_of_any_length
from skipwise.evals.tasks.passkey_prompt import PasskeyBuilder
from skipwise.evals.tasks.regression import paired_mean
from skipwise.model import rope_state, with_rope
from skipwise.names import did_you_mean
from skipwise.records.stats import Estimate
from skipwise.rope import NTK, Interpolation, Linear, LongRoPE, RopeSpec, YaRN
from skipwise.rope.tables import unscaled_frequencies
from skipwise.runtime.forward import token_nlls
from skipwise.window import Window

Objective = Callable[[Interpolation], float]
"""Judges an interpolation; lower is better, infinite if it cannot be used."""

KINDS = ("yarn", "longrope")
# Steps of YaRN's fields, as factors. Bounds of the ramp are rounded to whole pairs, so small steps change nothing.
_YARN_STEPS = {"beta_fast": 4.0, "beta_slow": 4.0, "factor": math.sqrt(2), "attention_factor_scale": 1.05}
# LongRoPE's divisors are at most this many times the stretch.
_LARGEST = 2.0
_PARENTS = 4
_BATCH_TOKENS = 2**14


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencySearch:
    """What is searched, and how much is spent on it.

    Attributes:
        kind: `longrope` or `yarn`.
        candidates: number of interpolations to try, 2 or more.
        trials: needles that each is tried on, 2 or more, spread evenly over the target.
        judged: other needles that the best one and YaRN's rule are compared on at the end, 2 or more.
    """

    kind: str = "longrope"
    candidates: int = 48
    trials: int = 16
    judged: int = 48

    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"frequencies to search are {self.kind!r}; {did_you_mean(self.kind, KINDS)}known: {', '.join(KINDS)}"
            )
        for name in ("candidates", "trials", "judged"):
            if getattr(self, name) < self.least:
                raise ConfigError(f"search of frequencies: {name} is {getattr(self, name)}; give {self.least} or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFrequencies:
    """What a search has found.

    Attributes:
        best: the best interpolation on the needles of the search.
        begin: YaRN's rule.
        difference: nats per answer token on other needles, `best` less `begin`, with its 95% interval.
        nlls: mean nats per answer token on these needles, of `begin` and of `best`.
        tried: number of interpolations that were tried.
    """

    best: Interpolation
    begin: Interpolation
    difference: Estimate
    nlls: tuple[float, float]
    tried: int

    @property
    def is_better(self) -> bool:
        """Whether the best one is measurably better than YaRN's rule."""
        return self.difference.high is not None and self.difference.high < 0

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of `interpolation` in a run: of the best one if it is measurably better, else of YaRN's rule."""
        return settings_of(self.best if self.is_better else self.begin)


def settings_of(interpolation: Interpolation) -> dict[str, Any]:
    """The kind and the fields of an interpolation that differ from its defaults, as a run takes them."""
    kept = {
        field.name: getattr(interpolation, field.name)
        for field in dataclasses.fields(interpolation)  # type: ignore[arg-type]
        if getattr(interpolation, field.name) != field.default
    }
    listed = {name: list(value) for name, value in kept.items() if isinstance(value, tuple)}
    return {"kind": interpolation.kind, **kept, **listed}


def search_frequencies(
    model: Any,
    tokenizer: Any,
    documents: Sequence[np.ndarray],
    window: Window,
    *,
    search: FrequencySearch | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FoundFrequencies:
    """Searches frequencies for a model that is not extended yet. The model is not changed.

    Args:
        model: a plain base model, in evaluation mode.
        tokenizer: the model's tokenizer.
        documents: token ids of each document, 1-D integers; text around half of the needles. Use documents that no
            evaluation reads.
        window: the lengths; needles are hidden in inputs of the target.
        search: what to search; None for the defaults.
        seed: seed of all random draws.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: the model is scaled already, or the target is too short for a needle.
        DataError: there are no documents.
        CheckpointError: under YaRN's rule, logits are NaN.
    """
    search, state = search or FrequencySearch(), rope_state(model.config)
    if state.scaled:
        raise ConfigError(
            f"the model is scaled by {state.kind!r} already; frequencies are searched for a base model before training",
            page="already-scaled",
        )
    with texts_of_any_length(tokenizer):
        asked, others = (
            _needles(tokenizer, documents, window.target, number, np.random.default_rng([seed, part]))
            for part, number in enumerate((search.trials, search.judged))
        )

    def nlls(interpolation: Interpolation, needles: Sequence[Needle]) -> list[float]:
        return needle_nlls(with_rope(model, interpolation, window).eval(), needles)

    def objective(interpolation: Interpolation) -> float:
        try:
            return float(np.mean(nlls(interpolation, asked)))
        except CheckpointError:
            return math.inf

    shown = progress and process_state().is_main_process
    with Bar(total=search.candidates, desc=f"frequencies of {search.kind}", disable=not shown, leave=False) as bar:
        candidates = Candidates(objective, search.candidates, bar.update)
        rng = np.random.default_rng([seed, len(KINDS)])
        if search.kind == "yarn":
            best = search_yarn(candidates, window)
        else:
            best = search_longrope(candidates, state.spec, window, rng)
    begin = YaRN()
    before, after = (np.asarray(nlls(one, others)) for one in (begin, best))
    return FoundFrequencies(
        best=best,
        begin=begin,
        difference=paired_mean(after - before)[0],
        nlls=(float(before.mean()), float(after.mean())),
        tried=candidates.tried,
    )


Needle = tuple[list[int], int]
"""Token ids of a prompt with its answer, and the number of answer tokens."""


def _needles(
    tokenizer: Any, documents: Sequence[np.ndarray], length: int, number: int, rng: np.random.Generator
) -> list[Needle]:
    """Passkeys at depths spread evenly; every other one in text of a document."""
    found = []
    for trial in range(number):
        text = None
        if documents and trial % 2:
            document = documents[int(rng.integers(len(documents)))]
            text = np.roll(document, -int(rng.integers(len(document))))[:length].tolist()
        depth = (trial + float(rng.random())) / number
        prompt = PasskeyBuilder(tokenizer, text).build(length, depth, rng)
        found.append((prompt.prompt_ids + prompt.answer_ids, len(prompt.answer_ids)))
    return found


def needle_nlls(model: Any, needles: Sequence[Needle]) -> list[float]:
    """Mean negative log-likelihood of each needle's answer tokens, in nats.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        needles: all of one length.

    Raises:
        CheckpointError: a logit is NaN, or an NLL infinite.
    """
    length, found = len(needles[0][0]), []
    rows = max(1, _BATCH_TOKENS // length)
    for start in range(0, len(needles), rows):
        batch = needles[start : start + rows]
        longest = max(answer for _, answer in batch)
        ids = torch.tensor([ids for ids, _ in batch])
        nlls = token_nlls(model, ids, length - longest, where=[f"needle {start + i}" for i in range(len(batch))])
        found += [float(row[longest - answer :].mean()) for row, (_, answer) in zip(nlls, batch, strict=True)]
    return found


class Candidates:
    """An objective that is asked at most `budget` times, and remembers its answers.

    Args:
        objective: judges each candidate once.
        budget: number of candidates.
        told: called after each.
    """

    def __init__(self, objective: Objective, budget: int, told: Callable[[], Any] = lambda: None) -> None:
        self._objective, self._budget, self._told = objective, budget, told
        self._values: dict[Interpolation, float] = {}

    @property
    def tried(self) -> int:
        """Number of candidates so far."""
        return len(self._values)

    @property
    def is_spent(self) -> bool:
        """Whether no further candidate is judged."""
        return self.tried >= self._budget

    def __call__(self, interpolation: Interpolation) -> float:
        """Its value; infinite for a new one once the budget is spent."""
        if interpolation not in self._values:
            if self.is_spent:
                return math.inf
            self._values[interpolation] = self._objective(interpolation)
            self._told()
        return self._values[interpolation]

    def best(self) -> Interpolation:
        """The first of the best ones."""
        return min(self._values, key=self._values.__getitem__)


def search_yarn(objective: Candidates, window: Window) -> YaRN:
    """Changes one field at a time by its step while that helps; then again by half the step, until the budget is spent.

    Args:
        objective: with its budget.
        window: the lengths.
    """
    begin: dict[str, Any] = {
        "factor": window.factor,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor_scale": 1.0,
    }
    fields, steps = dict(begin), dict(_YARN_STEPS)
    objective(YaRN())

    def value(changes: Mapping[str, float]) -> float:
        changed = {name: number for name, number in {**fields, **changes}.items() if number != begin[name]}
        ends = {**begin, **changed}
        if ends["factor"] < 1 or ends["beta_fast"] < ends["beta_slow"]:
            return math.inf
        return objective(YaRN(**changed))

    while not objective.is_spent:
        moved = False
        for name, step in steps.items():
            for direction in (step, 1 / step):
                while value({name: (next_one := _rounded(fields[name] * direction))}) < value({}):
                    fields[name] = next_one
                    moved = True
        if not moved:
            steps = {name: math.sqrt(step) for name, step in steps.items()}
            if max(steps.values()) < 1.02:
                break
    best = objective.best()
    assert isinstance(best, YaRN)
    return best


def _rounded(number: float) -> float:
    """To five digits, so that a step up and a step down lead back to the same number."""
    return float(f"{number:.5g}")


def search_longrope(objective: Candidates, spec: RopeSpec, window: Window, rng: np.random.Generator) -> LongRoPE:
    """An evolutionary search: the best few are parents, whose divisors are changed and mixed.

    Args:
        objective: with its budget.
        spec: of the base model.
        window: the lengths.
        rng: source of all draws.
    """
    base = unscaled_frequencies(spec)
    beginnings = [rule.table(spec, window) for rule in (YaRN(), NTK(), Linear())]
    # YaRN's attention factor suits any divisors; NTK and linear have none of their own.
    sharper = beginnings[0].attention_factor
    known: dict[LongRoPE, float] = {}

    def add(divisors: np.ndarray, factor: float) -> None:
        candidate = LongRoPE(long_factor=tuple(map(_rounded, divisors.tolist())), attention_factor=_rounded(factor))
        known[candidate] = objective(candidate)

    for table in beginnings:
        add(base / table.inv_freq, sharper)
    while not objective.is_spent:
        parents = sorted(known, key=known.__getitem__)[:_PARENTS]
        for divisors, factor in _children(parents, window.factor, rng):
            add(divisors, factor)
    best = objective.best()
    assert isinstance(best, LongRoPE)
    return best


def _children(
    parents: Sequence[LongRoPE], stretch: float, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, float]]:
    """For each parent a changed copy, and one mix of two; divisors stay in `1 .. 2 * stretch` and never fall."""
    logs = [np.log(np.array(parent.long_factor)) for parent in parents]
    factors = [parent.attention_factor or 1.0 for parent in parents]
    for log, factor in zip(logs, factors, strict=True):
        changed = log.copy()
        for pair in np.flatnonzero(rng.random(len(log)) < 0.3):
            low = changed[pair - 1] if pair else 0.0
            high = changed[pair + 1] if pair + 1 < len(log) else math.log(_LARGEST * stretch)
            changed[pair] = rng.uniform(low, max(low, high))
        yield np.exp(changed), factor * math.exp(rng.normal(0, 0.03))
    one, other = rng.choice(len(parents), size=2, replace=len(parents) < 2)
    # The larger, or the smaller, of two lists that never fall never falls either.
    mixed = (np.maximum if rng.random() < 0.5 else np.minimum)(logs[one], logs[other])
    yield np.exp(mixed), math.sqrt(factors[one] * factors[other])
