"""Pool the scores of an arm over seeds, and compare arms sample by sample.

Every arm is measured on the same documents and prompts. The difficulty of a sample therefore cancels in the difference
of two arms. Each sample has a sum and a weight, stored as arrays (seeds, samples): the NLL of a document's scored
tokens and their number, or a score and 1.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skipwise.records.comparison import Difference
from skipwise.records.results import EvalResult
from skipwise.records.stats import Estimate, bootstrap_ratio, widened, wilson

_RESAMPLES = 4000
_SCORE = "accuracy"


class Cell(NamedTuple):
    """A measurement: a task at a length, and the metric of it: `perplexity`, `longppl`, or `accuracy` of any score."""

    task: str
    length_tokens: int
    metric: str = "perplexity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The samples of one cell and arm.

    Attributes:
        names: name of each sample; the same sample has the same name in every arm.
        sums: (seeds, samples).
        weights: (seeds, samples).
        is_nll: if True, sums are NLLs in nats and weights are numbers of tokens; otherwise sums are scores from 0 to 1.
    """

    names: tuple[str, ...]
    sums: np.ndarray
    weights: np.ndarray
    is_nll: bool


def read_scores(files: Sequence[Path]) -> dict[Cell, Scores]:
    """Reads the scores of an arm from one file of samples per seed. Samples without a score are skipped.

    A cell is kept only if all files have it with the same samples, so that every cell contains all seeds.
    """
    by_seed: list[dict[Cell, dict[str, tuple[float, float]]]] = []
    for file in files:
        cells: dict[Cell, dict[str, tuple[float, float]]] = defaultdict(dict)
        for line in file.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            # A document may occur more than once, and prompts of different documents may have the same tokens.
            name = f"{sample.get('document', '')}:{sample.get('prompt_sha256', '')}"
            for metric, score in _scores(sample).items():
                cells[Cell(_named(sample["task"], sample), sample["length_tokens"], metric)][name] = score
        by_seed.append(cells)
    found = {}
    for cell in by_seed[0] if by_seed else ():
        if all(cell in cells and cells[cell].keys() == by_seed[0][cell].keys() for cells in by_seed):
            names = tuple(by_seed[0][cell])
            values = np.array([[cells[cell][name] for name in names] for cells in by_seed], np.float64)
            found[cell] = Scores(names=names, sums=values[..., 0], weights=values[..., 1], is_nll=cell.metric != _SCORE)
    return found


def pooled(scores: Scores, rng: np.random.Generator) -> tuple[Estimate, str]:
    """The perplexity or mean score over all seeds and samples, and the name of its interval's method.

    Over seeds, NLLs are averaged, which is the geometric mean of perplexities. Scores of several seeds on the same
    prompt are not independent trials, so the interval counts each prompt once.
    """
    num_seeds, num_samples = scores.sums.shape
    if not scores.is_nll:
        share = float((scores.sums / scores.weights).mean())
        return wilson(share * num_samples, num_samples), "Wilson" if num_seeds == 1 else "Wilson, counting prompts once"
    if num_seeds == 1:
        return bootstrap_ratio(scores.sums[0], scores.weights[0], rng).exp(), "bootstrap over documents"
    estimate = Estimate(_mean(scores), None, None)
    if num_samples > 1:
        estimate = widened(estimate.value, _resampled(scores, None, rng), num_samples)
    return estimate.exp(), "bootstrap over samples and seeds"


def difference(arm: Scores, reference: Scores, rng: np.random.Generator) -> Estimate | None:
    """Mean of arm minus reference on the samples, with an interval over samples and seeds.

    Seeds are paired in order. An untrained arm has a single seed, which is paired with every seed of the other arm.
    Intervals of NLLs are bootstrapped. Scores are often all equal, and with few samples a bootstrap would then show no
    spread. Their interval is therefore combined from the Wilson intervals of both arms.

    Returns:
        The difference of NLLs (of log perplexities), or of scores. None if the arms were not measured on the same
        samples.
    """
    if arm.names != reference.names or not (arm.weights[0] == reference.weights[0]).all():
        return None
    if not arm.is_nll:
        return _difference_of_shares(arm, reference)
    value = _mean(arm) - _mean(reference)
    if len(arm.names) < 2:
        return Estimate(value, None, None)
    return widened(value, _resampled(arm, reference, rng), len(arm.names), least=-math.inf)


def _difference_of_shares(arm: Scores, reference: Scores) -> Estimate:
    """Difference of two mean scores on the same prompts.

        d - sqrt((p - l)^2 - 2 r (p - l) (v - q) + (v - q)^2),  d + sqrt((u - p)^2 - 2 r (u - p) (q - m) + (q - m)^2)

    p and q are the means, (l, u) and (m, v) their Wilson intervals, and r is the correlation of the scores, or 0 if one
    arm's scores are all equal. Several seeds on one prompt count once.

    Source: Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
        data" (1998), method 8. The continuity correction of r in method 10 is not used.
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
    """Mean of scores (prompts,), and the distances from it to the ends of Wilson's interval, below and above."""
    value, low, high = wilson(float(scores.sum()), len(scores))
    return value, value - (low or 0.0), (high or 0.0) - value


def pooled_results(
    arm: str, results: Sequence[Sequence[EvalResult]], scores: Mapping[Cell, Scores], seeds: Sequence[int]
) -> Iterator[EvalResult]:
    """Yields the results of an arm pooled over its training seeds, of which an untrained arm has none."""
    for same in zip(*results, strict=True):
        first = same[0]
        estimate, interval = Estimate(first.value, first.ci_low, first.ci_high), first.details.get("interval")
        if len(results) > 1:
            estimate, interval = Estimate(float(np.mean([one.value for one in same])), None, None), None
            metric = _SCORE if first.metric == "score" else first.metric
            cell = scores.get(Cell(_named(first.task, first.details), first.length_tokens, metric))
            if cell is not None and first.is_whole:
                estimate, interval = pooled(cell, np.random.default_rng(0))
        details = {**first.details, "compared": arm, "train_seeds": list(seeds), "interval": interval}
        details.pop("train_seed", None)
        yield replace(first, value=estimate.value, ci_low=estimate.low, ci_high=estimate.high, details=details)


def differences(scores: Mapping[str, Mapping[Cell, Scores]], reference: str) -> Iterator[Difference]:
    """Yields the difference of every arm to the reference, in every cell in which both were measured."""
    for arm, cells in scores.items():
        for cell, of_arm in cells.items():
            of_reference = scores.get(reference, {}).get(cell)
            if arm == reference or of_reference is None:
                continue
            found = difference(of_arm, of_reference, np.random.default_rng(0))
            if found is None:
                continue
            yield Difference(
                arm=arm,
                reference=reference,
                task=cell.task,
                metric=cell.metric,
                length_tokens=cell.length_tokens,
                value=found.value,
                ci_low=found.low,
                ci_high=found.high,
                num_pairs=len(of_arm.names),
                num_seeds=max(len(of_arm.sums), len(of_reference.sums)),
            )


def rises(scores: Mapping[str, Mapping[Cell, Scores]]) -> Iterator[Difference]:
    """Yields how each arm's perplexity at each longer length differs from its own at the shortest.

    The same last tokens of the same documents are scored with more context, so both are paired by document.
    """
    for arm, cells in scores.items():
        own = {cell.length_tokens: _by_document(found) for cell, found in cells.items() if cell.task == "perplexity"}
        shortest = min(own, default=0)
        for length in sorted(own.keys() - {shortest}):
            if (found := difference(own[length], own[shortest], np.random.default_rng(0))) is None:
                continue
            yield Difference(
                arm=arm,
                reference=arm,
                task="perplexity",
                metric="perplexity",
                length_tokens=length,
                value=found.value,
                ci_low=found.low,
                ci_high=found.high,
                num_pairs=len(own[length].names),
                num_seeds=len(own[length].sums),
            )


def _by_document(scores: Scores) -> Scores:
    """The same samples, named by their document alone, whatever of it was read."""
    return replace(scores, names=tuple(name.partition(":")[0] for name in scores.names))


def _scores(sample: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Sum and weight of a sample by metric; LongPPL is of its key tokens, if it has any."""
    found = {}
    if "nll_sum" in sample:
        found["perplexity"] = sample["nll_sum"], sample["scored_tokens"]
    if sample.get("key_tokens"):
        found["longppl"] = sample["key_nll_sum"], sample["key_tokens"]
    score = sample.get("correct", sample.get("score"))
    return found | ({} if found or score is None else {_SCORE: (float(score), 1.0)})


def _named(task: str, details: Mapping[str, Any]) -> str:
    """The task's name, followed by the kind of question if it has several."""
    return " ".join(str(part) for part in (task, details.get("kind")) if part)


def _mean(scores: Scores) -> float:
    """Mean over seeds of each seed's weighted mean."""
    return float((scores.sums.sum(axis=1) / scores.weights.sum(axis=1)).mean())


def _resampled(arm: Scores, reference: Scores | None, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap means (resamples,) of an arm, or of its difference to the reference, over samples and seeds."""
    num_samples = len(arm.names)
    num_seeds = max(len(arm.sums), 0 if reference is None else len(reference.sums))
    samples = rng.integers(0, num_samples, size=(_RESAMPLES, num_samples))
    # A single seed gives no information about other seeds, so the interval is then that of this seed.
    seeds = rng.integers(0, num_seeds, size=(_RESAMPLES, num_seeds))

    def means(scores: Scores) -> np.ndarray:
        by_seed = scores.sums[:, samples].sum(axis=2) / scores.weights[:, samples].sum(axis=2)  # (seeds, resamples)
        if len(scores.sums) == 1:
            return by_seed[0]
        return np.take_along_axis(by_seed.T, seeds, axis=1).mean(axis=1)

    return means(arm) if reference is None else means(arm) - means(reference)
