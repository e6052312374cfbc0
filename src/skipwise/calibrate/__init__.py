"""Calibration: after training, choose an attention factor for the target on a few long documents.

In skip-wise training a query never sees more keys than the training window holds. At the target there are more keys,
and attention spreads over all of them. A larger factor on cos and sin sharpens the attention logits by its square. This
restores much of the retrieval, at the cost of a few forward passes. The configs of YaRN and LongRoPE already contain
such a factor.

    calibration = calibrate(model, tokenizer, documents)
    model = with_scaled_attention(model, calibration.scale)

    choice.py   the rule that chooses among the measured factors

**Which documents.** Calibration must not use documents that an evaluation reads. It chooses only one number out of
about ten, so it can hardly overfit, but a score on the same documents would still be the best of ten. `skipwise` uses
documents of the *training* split. All held-out documents then remain for evaluations, which need not know about
calibration. If the model has memorised training texts, it did so under the trained factor, so the error is towards no
change. Passkeys are generated from a seed that no evaluation uses. The record contains the hashes of the documents.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipwise.bars import Bar
from skipwise.calibrate.choice import UNCHANGED, FactorScores, Rule, scores_json
from skipwise.distributed import process_state
from skipwise.errors import CheckpointError, ConfigError
from skipwise.evals.cache import SampleCache, library_versions
from skipwise.evals.context import EvalContext
from skipwise.evals.prompts import texts_of_any_length
from skipwise.evals.tasks.nll import long_documents
from skipwise.evals.tasks.passkey import Passkey
from skipwise.evals.tasks.perplexity import LastTokensPerplexity
from skipwise.model import rope_state, with_scaled_attention
from skipwise.records.results import hash_tokens
from skipwise.rope import check_carries_factor
from skipwise.runtime.forward import check_length

__all__ = ["Calibration", "FactorScores", "Search", "calibrate", "require_calibratable"]

# Offset of the seed, so that calibration never uses the same passkeys as an evaluation.
_SEEDS_OF_EVALUATIONS = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Which factors are tried, and on how much data.

    Attributes:
        scales: factors relative to the trained attention factor; 1 (no change) is always tried.
        refine: whether to try one more factor between the choice and each of its neighbours.
        tolerance: relative increase in perplexity that is accepted, 0.03 for 3%; see `choice.Rule`.
        num_documents: maximum number of documents; each is at least as long as the target.
        scored_tokens: number of tokens at the end of each document that perplexity is measured on; at most half of the
            shortest length.
        trials: number of passkeys at the target, spread evenly over its depths.
    """

    scales: tuple[float, ...] = (0.9, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3)
    refine: bool = True
    tolerance: float = 0.03
    num_documents: int = 8
    scored_tokens: int = 128
    trials: int = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(sorted({UNCHANGED, *map(float, self.scales)})))
        if not all(0 < scale < math.inf for scale in self.scales):
            raise ConfigError(
                f"calibration scales are {list(self.scales)}; give numbers above 0, such as 0.9, 1.1, 1.2"
            )
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"calibration tolerance is {self.tolerance}; give a share from 0 to 1, such as 0.03")
        for name in ("num_documents", "scored_tokens", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"calibration {name} is {getattr(self, name)}; give 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The factors that were tried, and the choice.

    Attributes:
        trained_factor: attention factor that the model was trained with.
        scale: the choice relative to that factor; 1.0 means no change.
        lengths: lengths at which perplexity was measured, in tokens. The last one is the target, at which passkeys were
            measured too.
        measured: scores of every factor tried, in ascending order.
        documents: SHA-256 of the token ids of each document used.
    """

    kind: str
    trained_factor: float
    scale: float
    lengths: tuple[int, ...]
    measured: tuple[FactorScores, ...]
    documents: tuple[str, ...]
    search: Search
    seed: int

    @property
    def attention_factor(self) -> float:
        """The chosen attention factor."""
        return self.trained_factor * self.scale

    @property
    def rule(self) -> Rule:
        """The rule that made the choice."""
        return Rule(target=self.lengths[-1], tolerance=self.search.tolerance)

    @property
    def line(self) -> str:
        """The choice in one line of text."""
        by_scale = {one.scale: one for one in self.measured}
        before, after = by_scale[UNCHANGED], by_scale[self.scale]
        if after is before:
            others = len(self.measured) - 1
            return f"{self.trained_factor:.4g}, as trained: none of {others} others is measurably better"
        perplexities = ", ".join(
            " to ".join(f"{math.exp(one.log_perplexity(length)):.4g}" for one in (before, after)) + f" at {length}"
            for length in self.lengths
        )
        return (
            f"{self.attention_factor:.4g}, {self.scale:.4g} times the trained {self.trained_factor:.4g}: of "
            f"{len(after.found or ())} passkeys at {self.lengths[-1]}, {before.num_found} to {after.num_found} found; "
            f"perplexity {perplexities}"
        )

    def to_json(self) -> dict[str, Any]:
        """The calibration as JSON values; every score has its 95% interval."""
        return {
            "interpolation": self.kind,
            "trained_factor": self.trained_factor,
            "scale": self.scale,
            "attention_factor": self.attention_factor,
            "lengths": list(self.lengths),
            "factors": [scores_json(one, self.measured, self.rule, self.seed) for one in self.measured],
            "rule": " ".join((Rule.__doc__ or "").split("Attributes:")[0].split()),
            "settings": {**dataclasses.asdict(self.search), "scales": list(self.search.scales)},
            "documents_sha256": list(self.documents),
            "seed": self.seed,
            "versions": library_versions(),
        }


def calibrate(
    model: Any,
    tokenizer: Any,
    documents: Sequence[np.ndarray],
    lengths: Sequence[int] | None = None,
    *,
    search: Search | None = None,
    seed: int = 0,
    cache: SampleCache | None = None,
    progress: bool = True,
) -> Calibration:
    """Chooses an attention factor for a model. The model is not changed.

    Each factor is tried on a model built around the same parameters. Cheap measurements come first: perplexity at the
    shorter lengths, perplexity at the target, passkeys at the target. A factor that is excluded by one of them is not
    measured further.

    Args:
        model: a plain model whose interpolation has an attention factor. If it was calibrated before, scales are still
            relative to the factor that it was trained with.
        tokenizer: the model's tokenizer.
        documents: token ids of each document, 1-D integers. At least one must be as long as the target.
        lengths: lengths at which perplexity is measured, in tokens; the longest is the target. The default is the
            original window, the model's whole window, and their geometric mean.
        search: what to try; None for the defaults.
        seed: seed of all random draws.
        cache: stores samples, so that an interrupted calibration can continue.
        progress: whether to show progress bars.

    Raises:
        ConfigError: the interpolation has no attention factor, the model is wrapped, or a length cannot be used.
        DataError: no document is as long as the target.
        CheckpointError: the unchanged model's logits are NaN.
    """
    search = search or Search()
    context = EvalContext(
        model=model,
        tokenizer=tokenizer,
        documents=documents,
        seed=_SEEDS_OF_EVALUATIONS + seed,
        cache=cache,
        progress=progress,
    )
    trial = _checked(context, lengths, search)
    with texts_of_any_length(tokenizer):
        trial.measure(search.scales)
        chosen = trial.rule.choose(trial.measured)
        if search.refine and chosen.scale != UNCHANGED:
            trial.measure(_between_neighbours(chosen.scale, [one.scale for one in trial.measured]))
            chosen = trial.rule.choose(trial.measured)
    return Calibration(
        kind=rope_state(model.config).kind,
        trained_factor=trial.trained_factor,
        scale=chosen.scale,
        lengths=trial.lengths,
        measured=tuple(sorted(trial.measured, key=lambda one: one.scale)),
        documents=trial.document_hashes(),
        search=search,
        seed=seed,
    )


def require_calibratable(model: Any, tokenizer: Any, documents: Sequence[np.ndarray]) -> None:
    """Raises the errors that `calibrate` would raise for this model and these documents before its first pass."""
    _checked(EvalContext(model=model, tokenizer=tokenizer, documents=documents), None, Search())


def _checked(context: EvalContext, lengths: Sequence[int] | None, search: Search) -> "_Trial":
    """Builds a trial, and checks its lengths and documents."""
    state = rope_state(context.model.config)
    check_carries_factor(state.kind)
    between = round(math.sqrt(state.original * state.maximum))
    trial = _Trial(context, tuple(sorted({*(lengths or (state.original, between, state.maximum))})), search)
    with texts_of_any_length(context.tokenizer):
        trial.check()
    return trial


def _between_neighbours(scale: float, tried: Iterable[float]) -> list[float]:
    """The geometric means of a scale and its neighbours among those tried."""
    pairs = itertools.pairwise(sorted(tried))
    return [round(math.sqrt(low * high), 4) for low, high in pairs if scale in (low, high)]


class _Trial:
    """Measures attention factors of one model, at lengths in ascending order whose last one is the target."""

    def __init__(self, context: EvalContext, lengths: tuple[int, ...], search: Search) -> None:
        self._target = lengths[-1]
        self._context, self.lengths = context, lengths
        self._passkey = Passkey(trials=search.trials, num_depths=search.trials)
        self._perplexity = LastTokensPerplexity(
            scored_tokens=max(1, min(search.scored_tokens, lengths[0] // 2)),
            num_documents=search.num_documents,
            cut_tokens=self._target,
        )
        state = rope_state(context.model.config)
        self.trained_factor = state.attention_factor if state.trained_factor is None else state.trained_factor
        self.rule = Rule(target=self._target, tolerance=search.tolerance)
        self.measured: list[FactorScores] = []

    def check(self) -> None:
        """Refuses lengths and documents that cannot be measured, before any measurement."""
        check_length(self._context.model.config, self._target, allow_beyond=False)
        self._perplexity.check_lengths(self._context, self.lengths)
        self._passkey.check_lengths(self._context, [self._target])

    def document_hashes(self) -> tuple[str, ...]:
        """SHA-256 of each document that perplexity is measured on."""
        chosen = long_documents(self._context, self._perplexity, self._target)
        return tuple(hash_tokens(self._context.documents[index]) for index in chosen.indices)

    def measure(self, scales: Sequence[float]) -> None:
        """Measures these scales as far as the rule needs, the unchanged model first, and adds them to `measured`."""
        scales = sorted(set(scales) - {one.scale for one in self.measured}, key=lambda scale: scale != UNCHANGED)
        for scale in self._shown(scales, "perplexity of factors"):
            self.measured.append(self._with_perplexities(scale))
        kept = self.rule.kept(self.measured)
        asked = [
            index
            for index, scores in enumerate(self.measured)
            if scores.found is None and (scores in kept or scores.scale == UNCHANGED)
        ]
        for index in self._shown(asked, "passkeys of factors"):
            self.measured[index] = self._with_passkeys(self.measured[index])

    def _shown(self, items: Sequence[Any], doing: str) -> Iterable[Any]:
        """The items, under a bar."""
        shown = self._context.progress and process_state().is_main_process
        return Bar(items, desc=doing, disable=not shown, leave=False)

    def _with_perplexities(self, scale: float) -> FactorScores:
        context = self._context_with(scale)
        scores = FactorScores(scale=scale, attention_factor=self.trained_factor * scale)
        try:
            for length in self.lengths:
                if length == self._target and self.measured and not self.rule.keeps_short(scores, self.measured[0]):
                    break
                (measurement,) = self._perplexity.run(context, [length])
                nlls = [sample["nll_sum"] / sample["scored_tokens"] for sample in measurement.samples]
                scores = dataclasses.replace(scores, nlls={**scores.nlls, length: nlls})
        except CheckpointError as error:
            return self._excluded(scores, error)
        return scores

    def _with_passkeys(self, scores: FactorScores) -> FactorScores:
        try:
            (measurement,) = self._passkey.run(self._context_with(scores.scale), [self._target])
        except CheckpointError as error:
            return self._excluded(scores, error)
        return dataclasses.replace(scores, found=[sample["correct"] for sample in measurement.samples])

    def _excluded(self, scores: FactorScores, error: CheckpointError) -> FactorScores:
        """Marks a factor with unusable logits as excluded. For the unchanged model this is an error."""
        if scores.scale == UNCHANGED:
            raise error
        return dataclasses.replace(scores, broken=f"its logits cannot be used: {error}")

    def _context_with(self, scale: float) -> EvalContext:
        """The context with a model that has another factor, built around the same parameters."""
        return dataclasses.replace(self._context, model=with_scaled_attention(self._context.model, scale).eval())
