"""Arms against each other, sample by sample: what several seeds give together, and how far two arms are apart.

Every arm is measured on the same documents and prompts, so that what is hard about a sample is hard for all, and drops
out of the difference of two arms. Of each sample two numbers are kept, a sum and a weight (the NLL of a document's
scored tokens and how many these are; a score and 1), as arrays (seeds, samples).
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skipwise.records.comparison import Difference
from skipwise.records.results import EvalResult
from skipwise.records.stats import Estimate, bootstrap_ratio, widened, wilson

_RESAMPLES = 4000

INTERVAL = "bootstrap over samples"
INTERVAL_WITH_SEEDS = "bootstrap over samples and seeds"


class Cell(NamedTuple):
    """What is measured: a task at a length."""

    task: str
    length_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The samples of one cell and arm.

    Attributes:
        names: of each sample, the same for the same sample of another arm.
        sums: (seeds, samples).
        weights: (seeds, samples).
        is_nll: sums are NLLs in nats and weights tokens; otherwise sums are scores of 0 to 1.
    """

    names: tuple[str, ...]
    sums: np.ndarray
    weights: np.ndarray
    is_nll: bool


def read_scores(files: Sequence[Path]) -> dict[Cell, Scores]:
    """The scores of an arm, one file of samples for each seed; samples that are no scores are passed over.

    A file that lacks a cell which another has takes the cell away: seeds are pooled whole or not at all.
    """
    by_seed: list[dict[Cell, dict[str, tuple[float, float, bool]]]] = []
    for file in files:
        cells: dict[Cell, dict[str, tuple[float, float, bool]]] = defaultdict(dict)
        for line in file.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            if (score := _score(sample)) is not None:
                # The same document may be there more than once, and another task's prompt may have the same tokens.
                name = f"{sample.get('document', '')}:{sample.get('prompt_sha256', '')}"
                cells[Cell(_task_of(sample), sample["length_tokens"])][name] = score
        by_seed.append(cells)
    found = {}
    for cell in by_seed[0] if by_seed else ():
        if all(cell in cells and cells[cell].keys() == by_seed[0][cell].keys() for cells in by_seed):
            names = tuple(by_seed[0][cell])
            values = np.array([[cells[cell][name] for name in names] for cells in by_seed], np.float64)
            found[cell] = Scores(names=names, sums=values[..., 0], weights=values[..., 1], is_nll=bool(values[0, 0, 2]))
    return found


def pooled(scores: Scores, rng: np.random.Generator) -> tuple[Estimate, str]:
    """Value over all seeds and samples, and what its interval is: a perplexity, or a mean score.

    Perplexities of several seeds are averaged as NLLs, which is their geometric mean. Scores of several seeds on one
    prompt are no independent trials: the interval counts prompts.
    """
    num_seeds, num_samples = scores.sums.shape
    if not scores.is_nll:
        share = float((scores.sums / scores.weights).mean())
        return wilson(share * num_samples, num_samples), "Wilson" if num_seeds == 1 else "Wilson, counting prompts once"
    if num_seeds == 1:
        return bootstrap_ratio(scores.sums[0], scores.weights[0], rng).exp(), "bootstrap over documents"
    means = _resampled(scores, None, rng)
    value = _mean(scores)
    estimate = Estimate(value, None, None) if num_samples < 2 else widened(value, means, num_samples)
    return estimate.exp(), INTERVAL_WITH_SEEDS


def difference(arm: Scores, reference: Scores, rng: np.random.Generator) -> Estimate | None:
    """Mean of arm minus reference on the samples, with an interval over samples and seeds.

    Seeds pair in order; an arm that is not trained has one, which stands against each of the other's. NLLs are
    resampled; of scores, which are often all alike, resampling would find no spread where there are few, so that their
    interval is put together from Wilson's of both.

    Returns:
        A difference of NLLs, which is that of the logarithms of the perplexities, or of scores; None where the two were
        not measured on the same samples.
    """
    if arm.names != reference.names or not (arm.weights[0] == reference.weights[0]).all():
        return None
    value = _mean(arm) - _mean(reference)
    if not arm.is_nll:
        return _difference_of_shares(arm, reference)
    if len(arm.names) < 2:
        return Estimate(value, None, None)
    resampled = _resampled(arm, reference, rng)
    return widened(value, resampled, len(arm.names), least=-math.inf)


def _difference_of_shares(arm: Scores, reference: Scores) -> Estimate:
    """Difference of two mean scores on the same prompts.

        d - sqrt((p - l)^2 - 2 r (p - l) (v - q) + (v - q)^2),  d + sqrt((u - p)^2 - 2 r (u - p) (q - m) + (q - m)^2)

    for means p and q with Wilson's intervals (l, u) and (m, v), and r the correlation of their scores; 0 where one of
    them is always the same. Several seeds on one prompt count once.

    Source: Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
        data" (1998), method 8; there r has a continuity correction in method 10, which this leaves out.
    """
    per_prompt = [(scores.sums / scores.weights).mean(axis=0) for scores in (arm, reference)]
    (p, below_p, above_p), (q, below_q, above_q) = (_wilson_reach(of) for of in per_prompt)
    varies = all(of.std() > 0 for of in per_prompt)
    r = float(np.corrcoef(*per_prompt)[0, 1]) if varies else 0.0

    def reach(of_arm: float, of_reference: float) -> float:
        return math.sqrt(max(0.0, of_arm**2 - 2 * r * of_arm * of_reference + of_reference**2))

    low, high = p - q - reach(below_p, above_q), p - q + reach(above_p, below_q)
    return Estimate(p - q, max(-1.0, low), min(1.0, high))


def _wilson_reach(scores: np.ndarray) -> tuple[float, float, float]:
    """Mean of scores (prompts,), and how far Wilson's interval reaches below and above it."""
    value, low, high = wilson(float(scores.sum()), len(scores))
    return value, value - (low or 0.0), (high or 0.0) - value


def pooled_results(
    arm: str, results: Sequence[Sequence[EvalResult]], scores: Mapping[Cell, Scores], seeds: Sequence[int]
) -> Iterator[EvalResult]:
    """The results of an arm over its seeds: each number once.

    Args:
        arm: its name.
        results: of each seed.
        scores: of all seeds together.
        seeds: of training; empty for an arm that is not trained.
    """
    num_runs = len(results)
    for index, first in enumerate(results[0]):
        same = [of_seed[index] for of_seed in results]
        details = {**first.details, "compared": arm, "train_seeds": list(seeds)}
        details.pop("train_seed", None)
        estimate, interval = Estimate(first.value, first.ci_low, first.ci_high), first.details.get("interval")
        if num_runs > 1:
            estimate = Estimate(float(np.mean([one.value for one in same])), None, None)
            interval = None
            cell = scores.get(Cell(_named(first.task, first.details), first.length_tokens))
            whole = not {"depth_from", "position_from"} & first.details.keys()
            if cell is not None and whole and first.metric in ("perplexity", "accuracy", "score"):
                estimate, interval = pooled(cell, np.random.default_rng(0))
        yield EvalResult(
            task=first.task,
            length_tokens=first.length_tokens,
            metric=first.metric,
            value=estimate.value,
            ci_low=estimate.low,
            ci_high=estimate.high,
            num_samples=first.num_samples,
            num_skipped=first.num_skipped,
            seed=first.seed,
            details={**details, "interval": interval},
        )


def differences(scores: Mapping[str, Mapping[Cell, Scores]], reference: str) -> Iterator[Difference]:
    """Every arm against the reference in every cell that both were measured in."""
    for arm, cells in scores.items():
        for cell, of_arm in cells.items():
            of_reference = scores.get(reference, {}).get(cell)
            if arm == reference or of_reference is None:
                continue
            found = difference(of_arm, of_reference, np.random.default_rng(0))
            if found is not None:
                yield Difference(
                    arm=arm,
                    reference=reference,
                    task=cell.task,
                    metric="perplexity" if of_arm.is_nll else "accuracy",
                    length_tokens=cell.length_tokens,
                    value=found.value,
                    ci_low=found.low,
                    ci_high=found.high,
                    num_pairs=len(of_arm.names),
                    num_seeds=max(len(of_arm.sums), len(of_reference.sums)),
                )


def _score(sample: Mapping[str, Any]) -> tuple[float, float, bool] | None:
    """Sum, weight, and whether it is an NLL."""
    if "nll_sum" in sample:
        return sample["nll_sum"], sample["scored_tokens"], True
    score = sample.get("correct", sample.get("score"))
    return None if score is None else (float(score), 1.0, False)


def _task_of(sample: Mapping[str, Any]) -> str:
    return _named(sample["task"], sample)


def _named(task: str, details: Mapping[str, Any]) -> str:
    """A task, with the kind of question where it has several."""
    return " ".join(str(part) for part in (task, details.get("kind")) if part)


def _mean(scores: Scores) -> float:
    """Mean over seeds of each seed's weighted mean."""
    return float((scores.sums.sum(axis=1) / scores.weights.sum(axis=1)).mean())


def _resampled(arm: Scores, reference: Scores | None, rng: np.random.Generator) -> np.ndarray:
    """Means (resamples,), of an arm or of its difference to the reference, with samples and seeds drawn anew."""
    num_samples = len(arm.names)
    num_seeds = max(len(arm.sums), 0 if reference is None else len(reference.sums))
    samples = rng.integers(0, num_samples, size=(_RESAMPLES, num_samples))
    # A single seed says nothing about others: the interval then is of this one.
    seeds = rng.integers(0, num_seeds, size=(_RESAMPLES, num_seeds))

    def means(scores: Scores) -> np.ndarray:
        by_seed = scores.sums[:, samples].sum(axis=2) / scores.weights[:, samples].sum(axis=2)  # (seeds, resamples)
        if len(scores.sums) == 1:
            return by_seed[0]
        return np.take_along_axis(by_seed.T, seeds, axis=1).mean(axis=1)

    return means(arm) if reference is None else means(arm) - means(reference)
