"""What an extension costs within the base model's window: both models on the same tokens."""

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
from skipwise.evals.tasks.nll import INTERVAL, DocumentTask
from skipwise.evals.tasks.position import bucket_edges, bucket_sums
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
class ShortWindowRegression(DocumentTask):
    """How far a model has moved from its base on inputs that the base can read.

        kl(t) = sum over v of p_base(v | x_<t) * ln(p_base(v | x_<t) / p_model(v | x_<t))
        log_perplexity_ratio = ln(PPL_model / PPL_base) = mean of (NLL_model - NLL_base)

    over the first L tokens of each document, for lengths up to the base's window. Both models read the same tokens, so
    everything is paired by document. Each arm has the results `kl_mean`, `kl_median`, `kl_p99`, `kl_max`, `same_top`
    (share of tokens where both models have the same most likely token) and `log_perplexity_ratio`. The first and the
    last two also exist by position, with the suffix `_at_position` and the buckets of `nll_by_position`. The interval
    of the log ratio is Student's with the standard error over documents, which is in the details; the others are
    bootstraps over documents.

    Arm "model" is the model. If its RoPE differs from the base's, arm "interpolation only" is the base's weights under
    the model's config: the cost of the interpolation before any training.

    Attributes:
        base: the model that it was extended from: a folder, a hub name or a .gguf file.
        untrained: whether to measure the arm "interpolation only".
        num_documents: maximum number of documents; each has at least the largest length.
        num_buckets: maximum number of buckets of positions.
        bos: whether inputs begin with the beginning-of-sequence token, which then counts towards the length.
            `tokenizer` means: if the tokenizer adds one.
        trust_remote_code: whether to run Python code that comes with the base.
    """

    name: ClassVar[str] = "regression"
    base: Base = field(default="", metadata=NO_KEY)
    untrained: bool = True
    num_documents: Count = field(default=20, metadata=NO_KEY)
    num_buckets: Count = 4
    bos: BosPolicy = "tokenizer"
    trust_remote_code: bool = False

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that lengths are within the base's window, by its config, and that some document is long enough."""
        window = rope_state(read_config(self.base, trust_remote_code=self.trust_remote_code)).maximum
        if max(lengths) > window:
            raise ConfigError(
                f"regression length is {max(lengths)} tokens and the window of its base {self.base!r} is {window}, "
                "beyond which the base says nothing; ask for lengths up to that",
                page="length-does-not-fit",
            )
        self.documents(context, lengths)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures all lengths on the same documents, with one pass of all arms over each."""
        bos, chosen = context.bos(self.bos), self.documents(context, lengths)
        base = self._load_base(context)
        arms = {MODEL_ARM: context.model}
        if self.untrained and _rotates_otherwise(context.model, base):
            arms[UNTRAINED_ARM] = under_config_of(context.model, base)
        # Samples depend on the base's content, not on its path.
        scope: dict[str, Any] = {} if context.cache is None else {"base_sha256": hash_model(base)}

        def measure(length: int, body: np.ndarray, where: str) -> dict[str, Any]:
            return self._scores(base, arms, as_input(bos, body[: length - len(bos)]), where)

        for length in lengths:
            samples = self.samples(context, length, chosen, measure, **scope)
            about = {"num_skipped": chosen.num_skipped, **self.about(lengths)}
            results = [one for arm in arms for one in self._arm_results(context, length, samples, arm, about)]
            yield Measurement(results, samples)

    def _load_base(self, context: EvalContext) -> Any:
        """The base on the model's device and in its dtype, so that only the models differ."""
        model = context.model
        loaded = load_model(
            self.base,
            dtype=model.dtype,
            attention=attention_of(model.config),
            trust_remote_code=self.trust_remote_code,
        )
        _check_comparable(self.base, loaded, context)
        return loaded.model.to(model.device)  # pyright: ignore[reportArgumentType]

    def _scores(self, base: Any, arms: Mapping[str, Any], input_ids: Tensor, where: str) -> dict[str, Any]:
        """A sample's content: each bucket's sums for the means, and every token's KL for the quantiles."""

        def sums(scores: Tensor) -> list[float]:
            return bucket_sums(scores.numpy(), self.num_buckets)

        scores = paired_scores(base, arms, input_ids, where=where)
        return {
            "prompt_sha256": hash_tokens(input_ids[0].numpy()),
            "base_nll_sums": sums(scores[MODEL_ARM].base_nll),
            "arms": {
                arm: {
                    "nll_sums": sums(of_arm.nll),
                    "kl_sums": sums(of_arm.kl),
                    "same_top_sums": sums(of_arm.same_top),
                    "kls": [float(f"{kl:.5g}") for kl in of_arm.kl.tolist()],
                }
                for arm, of_arm in scores.items()
            },
        }

    def _arm_results(
        self, context: EvalContext, length: int, samples: Sequence[Sample], arm: str, about: Mapping[str, Any]
    ) -> list[EvalResult]:
        """Results of one arm: over all positions, then per bucket; `about` joins the arguments of each result."""
        edges = bucket_edges(length, self.num_buckets)
        arms = [sample["arms"][arm] for sample in samples]
        kl, same_top, nll = (np.array([of[f"{name}_sums"] for of in arms]) for name in ("kl", "same_top", "nll"))
        excess = nll - np.array([sample["base_nll_sums"] for sample in samples])

        def result(metric: str, estimate: Estimate, interval: str | None, **details: Any) -> EvalResult:
            details |= {"arm": arm, "interval": interval, **about}
            return context.result(self, length, metric, estimate, num_samples=len(samples), **details)

        def means(first: int, end: int, ending: str = "", **details: Any) -> Iterator[EvalResult]:
            """Means over the buckets from `first` to `end`."""
            tokens = np.full(len(samples), edges[end] - edges[first])
            # Each with its largest possible value.
            for name, sums, most in (("kl_mean", kl, math.inf), ("same_top", same_top, 1.0)):
                totals = sums[:, first:end].sum(axis=1)
                estimate = bootstrap_ratio(totals, tokens, context.rng("bootstrap"), most=most)
                yield result(name + ending, estimate, INTERVAL, **details)
            ratio, error = paired_mean(excess[:, first:end].sum(axis=1) / tokens)
            how = "Student's t over documents"
            yield result("log_perplexity_ratio" + ending, ratio, how, standard_error=error, **details)

        kls = np.array([of["kls"] for of in arms])
        spread = bootstrap_quantiles(kls, list(_QUANTILES.values()), context.rng("bootstrap"))
        results = [*means(0, len(edges) - 1)]
        results += [result(name, estimate, INTERVAL) for name, estimate in zip(_QUANTILES, spread, strict=True)]
        # Resampling does not tell how much larger the maximum over other documents might be.
        results.append(result("kl_max", Estimate(float(kls.max()), None, None), None))
        for bucket, (begin, end) in enumerate(pairwise(edges)):
            results += means(bucket, bucket + 1, "_at_position", position_from=begin, position_to=end)
        return results


def under_config_of(model: Any, base: Any) -> Any:
    """A model built from the extended model's config around the base's own parameters: the interpolation, untrained."""
    parameters = dict(base.named_parameters(remove_duplicate=False))
    return built_around(type(base), copy.deepcopy(model.config), parameters, base)


def paired_mean(differences: ArrayLike, confidence: float = CONFIDENCE) -> tuple[Estimate, float | None]:
    """Mean of differences with Student's interval, and its standard error.

        mean -+ t_(n-1) s / sqrt(n)

    Args:
        differences: 1-D, one entry per document.
        confidence: nominal coverage of the interval.

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
    """Quantiles over all tokens, with the widened intervals of a bootstrap over whole documents.

    Args:
        values: (documents, tokens), none negative.
        shares: the quantiles, each 0 to 1.
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
    """Raises ConfigError unless the base has the model's class, vocabulary and tokenizer."""
    model = context.model
    if type(base.model) is not type(plain_model(model)):
        raise ConfigError(
            f"regression.base {name!r} is a {type(base.model).__name__} and the model a {type(model).__name__}; give "
            "the model that it was extended from",
            page="wrong-base",
        )
    sizes = [network.config.get_text_config().vocab_size for network in (base.model, model)]
    if sizes[0] != sizes[1] or hash_tokenizer(base.tokenizer) != hash_tokenizer(context.tokenizer):
        raise ConfigError(
            f"regression.base {name!r} has another vocabulary or tokenizer than the model ({sizes[0]} and {sizes[1]} "
            "logits), so their distributions cannot be compared; give the model that it was extended from",
            page="wrong-base",
        )
