"""What an extension costs inside the base model's own window: model and base side by side, token by token."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor

from skipwise.errors import ConfigError
from skipwise.evals.cache import hash_model
from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.paired import paired_scores
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import INTERVAL, ScoresDocuments, document_samples, long_documents
from skipwise.evals.tasks.position import bucket_edges
from skipwise.model import LoadedModel, attention_of, load_model, read_config, rope_state
from skipwise.model.extend import built_around
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokenizer, hash_tokens
from skipwise.records.stats import CONFIDENCE, Estimate, bootstrap_ratio, student_t, widened
from skipwise.runtime.forward import plain_model

MODEL_ARM, UNTRAINED_ARM = "model", "interpolation only"

_QUANTILES = {"kl_median": 0.5, "kl_p99": 0.99}
_QUANTILE_RESAMPLES = 500

Base = Annotated[
    str,
    Field(min_length=1, description="the model that this one was extended from: a folder, a hub name or a .gguf file"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortWindowRegression(ScoresDocuments):
    """How far a model has moved from its base on inputs that the base could already read.

        kl(t) = sum over v of p_base(v | x_<t) * ln(p_base(v | x_<t) / p_model(v | x_<t))
        log_perplexity_ratio = ln(PPL_model / PPL_base) = mean of (NLL_model - NLL_base)

    over the first L tokens of each document, for lengths up to the base's window. Both models read the same tokens, so
    everything is paired by document. Each arm has results `kl_mean`, `kl_median`, `kl_p99`, `kl_max`, `same_top` (share
    of tokens where both hold the same one for the likeliest) and `log_perplexity_ratio`; the first and the last two
    also by position, with `_at_position` and the buckets of `nll_by_position`. The interval of the log ratio is
    Student's with the standard error over documents, which is in the details; the others are bootstraps over documents.

    Arm "model" is the model. Where it is scaled otherwise than the base, arm "interpolation only" is the base's weights
    under the model's config: what the interpolation costs before any training.

    Attributes:
        base: the model that it was extended from: a folder, a hub name or a .gguf file.
        untrained: whether to measure the arm "interpolation only".
        num_documents: documents at most, each of at least the largest length.
        num_buckets: buckets of positions at most.
        bos: whether inputs begin with the beginning-of-sequence token, which then counts towards the length.
        trust_remote_code: run Python code that comes with the base.
    """

    name: ClassVar[str] = "regression"
    base: Base = field(default="", metadata=NO_KEY)
    untrained: bool = True
    num_documents: Count = field(default=20, metadata=NO_KEY)
    num_buckets: Count = 4
    bos: BosPolicy = "tokenizer"
    trust_remote_code: bool = False

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Refuses lengths beyond the base's window, by its config, and documents that are all too short."""
        window = rope_state(read_config(self.base, trust_remote_code=self.trust_remote_code)).maximum
        if max(lengths) > window:
            raise ConfigError(
                f"regression length is {max(lengths)} tokens and the window of its base {self.base!r} is {window}, "
                "beyond which the base says nothing; ask for lengths up to that"
            )
        long_documents(context, self, max(lengths))

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length on the same documents: all arms in one pass over each."""
        bos = context.bos(self.bos)
        chosen = long_documents(context, self, max(lengths))
        base = self._load_base(context)
        arms = {MODEL_ARM: context.model}
        if self.untrained and _rotates_otherwise(context.model, base):
            arms[UNTRAINED_ARM] = under_config_of(context.model, base)
        # Its path is no part of what samples depend on; what lies there is.
        scope: dict[str, Any] = {} if context.cache is None else {"base_sha256": hash_model(base)}
        about = {"num_skipped": chosen.num_skipped, "longest_tokens": max(lengths)}

        def measure(length: int, index: int, body: np.ndarray, where: str) -> Sample:
            return self._sample(base, arms, index, as_input(bos, body[: length - len(bos)]), where)

        for length, samples in document_samples(context, self, lengths, chosen, measure, **scope):
            results = [one for arm in arms for one in self._results(context, length, samples, arm, about)]
            yield Measurement(results, samples)

    def _load_base(self, context: EvalContext) -> Any:
        """The base where the model is and in its precision, so that nothing but the models differs."""
        model = context.model
        loaded = load_model(
            self.base,
            dtype=model.dtype,
            attention=attention_of(model.config),
            trust_remote_code=self.trust_remote_code,
        )
        _check_comparable(self.base, loaded, context)
        return loaded.model.to(model.device)  # pyright: ignore[reportArgumentType]

    def _sample(self, base: Any, arms: Mapping[str, Any], document: int, input_ids: Tensor, where: str) -> Sample:
        """The record of one document: sums of each bucket for the means, every token's KL for its quantiles."""
        length = input_ids.shape[1]
        # The first score belongs to position 1.
        begins = [edge - 1 for edge in bucket_edges(length, self.num_buckets)[:-1]]

        def bucket_sums(scores: Tensor) -> list[float]:
            return np.add.reduceat(scores.numpy(), begins).tolist()

        scores = paired_scores(base, arms, input_ids, where=where)
        return {
            "task": self.name,
            "length_tokens": length,
            "document": document,
            "prompt_sha256": hash_tokens(input_ids[0].numpy()),
            "base_nll_sums": bucket_sums(scores[MODEL_ARM].base_nll),
            "arms": {
                arm: {
                    "nll_sums": bucket_sums(of_arm.nll),
                    "kl_sums": bucket_sums(of_arm.kl),
                    "same_top_sums": bucket_sums(of_arm.same_top),
                    "kls": [float(f"{kl:.5g}") for kl in of_arm.kl.tolist()],
                }
                for arm, of_arm in scores.items()
            },
        }

    def _results(
        self, context: EvalContext, length: int, samples: Sequence[Sample], arm: str, about: Mapping[str, Any]
    ) -> list[EvalResult]:
        """Results of one arm: all positions, then bucket by bucket; each says `about` which documents it is."""
        edges = bucket_edges(length, self.num_buckets)
        arms = [sample["arms"][arm] for sample in samples]
        kl, same_top, nll = (np.array([of[f"{name}_sums"] for of in arms]) for name in ("kl", "same_top", "nll"))
        excess = nll - np.array([sample["base_nll_sums"] for sample in samples])

        def result(metric: str, estimate: Estimate, interval: str | None, **details: Any) -> EvalResult:
            return context.result(
                self,
                length,
                metric,
                estimate,
                num_samples=len(samples),
                arm=arm,
                interval=interval,
                **about,
                **details,
            )

        def means(buckets: slice, ending: str = "", **details: Any) -> list[EvalResult]:
            begin, end = edges[buckets.start], edges[buckets.stop]
            tokens = np.full(len(samples), end - begin)
            log_ratio, error = paired_mean(excess[:, buckets].sum(axis=1) / tokens)
            # Each with the most that it can be.
            shares = {"kl_mean": (kl, math.inf), "same_top": (same_top, 1.0)}
            return [
                *(
                    result(
                        name + ending,
                        bootstrap_ratio(sums[:, buckets].sum(axis=1), tokens, context.rng("bootstrap"), most=most),
                        INTERVAL,
                        **details,
                    )
                    for name, (sums, most) in shares.items()
                ),
                result(
                    "log_perplexity_ratio" + ending,
                    log_ratio,
                    "Student's t over documents",
                    standard_error=error,
                    **details,
                ),
            ]

        kls = np.array([of["kls"] for of in arms])
        spread = bootstrap_quantiles(kls, list(_QUANTILES.values()), context.rng("bootstrap"))
        return [
            *means(slice(0, len(edges) - 1)),
            *(result(name, estimate, INTERVAL) for name, estimate in zip(_QUANTILES, spread, strict=True)),
            # No resampling tells how much larger the largest of other documents might be.
            result("kl_max", Estimate(float(kls.max()), None, None), None),
            *(
                one
                for bucket, (begin, end) in enumerate(pairwise(edges))
                for one in means(slice(bucket, bucket + 1), "_at_position", position_from=begin, position_to=end)
            ),
        ]


def under_config_of(model: Any, base: Any) -> Any:
    """The base's parameters, shared, in a model built from the other's config: its interpolation, untrained."""
    parameters = dict(base.named_parameters(remove_duplicate=False))
    return built_around(type(base), copy.deepcopy(model.config), parameters, base)


def paired_mean(differences: ArrayLike, confidence: float = CONFIDENCE) -> tuple[Estimate, float | None]:
    """Mean of differences with Student's interval, and its standard error.

        mean -+ t_(n-1) s / sqrt(n)

    Args:
        differences: 1-D, one entry per document.
        confidence: coverage of the interval.

    Source: Student, "The probable error of a mean" (1908).
    """
    values = np.asarray(differences, np.float64)
    mean, degrees = float(values.mean()), len(values) - 1
    if not degrees:
        return Estimate(mean, None, None), None
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    t = student_t(degrees, confidence)
    return Estimate(mean, mean - t * error, mean + t * error), error


def bootstrap_quantiles(values: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> list[Estimate]:
    """Quantiles over all tokens, with the widened intervals of resampling whole documents.

    Args:
        values: (documents, tokens), none negative.
        shares: which quantiles, each 0 to 1.
        rng: source of the resamples.
    """
    found = np.quantile(values, shares)
    if len(values) < 2:
        return [Estimate(float(value), None, None) for value in found]
    drawn = rng.integers(0, len(values), size=(_QUANTILE_RESAMPLES, len(values)))
    resampled = np.array([np.quantile(values[rows], shares) for rows in drawn])
    return [widened(float(value), column, len(values)) for value, column in zip(found, resampled.T, strict=True)]


def _rotates_otherwise(model: Any, base: Any) -> bool:
    """Whether the model's rotary embedding has other parameters than the base's."""
    return rope_state(model.config).parameters != rope_state(base.config).parameters


def _check_comparable(name: str, base: LoadedModel, context: EvalContext) -> None:
    """Raises ConfigError unless the base predicts the same tokens by the same kind of model."""
    model = context.model
    if type(base.model) is not type(plain_model(model)):
        raise ConfigError(
            f"regression.base {name!r} is a {type(base.model).__name__} and the model a {type(model).__name__}; give "
            "the model that it was extended from"
        )
    sizes = [network.config.get_text_config().vocab_size for network in (base.model, model)]
    if sizes[0] != sizes[1] or hash_tokenizer(base.tokenizer) != hash_tokenizer(context.tokenizer):
        raise ConfigError(
            f"regression.base {name!r} has another vocabulary or tokenizer than the model ({sizes[0]} and {sizes[1]} "
            "logits), so their distributions cannot be compared; give the model that it was extended from"
        )
