"""Prompts with known answers: how tasks build them, have the model answer them, and score the answers."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from skipwise.distributed import process_state
from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext
from skipwise.model import longest_input
from skipwise.records.results import EvalResult, Sample, hash_tokens
from skipwise.records.stats import wilson
from skipwise.runtime.decode import BATCH_TOKENS, end_token_ids, greedy_outputs

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question and what a right answer contains.

    Attributes:
        prompt_ids: token ids up to the beginning of the answer.
        references: texts that the output should contain.
        max_new_tokens: maximum number of tokens of the answer.
        answer_ids: a continuation of the prompt that has score 1; empty if no single one does.
        details: JSON values that join the sample, such as its depth.
    """

    prompt_ids: list[int]
    references: list[str]
    max_new_tokens: int
    answer_ids: list[int] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        answer_tokens = len(self.answer_ids)
        if not self.prompt_ids or self.max_new_tokens < max(1, answer_tokens):
            raise ConfigError(
                f"a prompt of {len(self.prompt_ids)} tokens with a right answer of {answer_tokens} may be answered in "
                f"{self.max_new_tokens}; give a prompt, and max_new_tokens of at least {max(1, answer_tokens)}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the longest answer together."""
        return len(self.prompt_ids) + self.max_new_tokens


Score = Callable[[str, Sequence[str]], float | None]
"""Scores an output by its references: 0 to 1, or None if it cannot be scored."""


def string_match_all(output: str, references: Sequence[str]) -> float | None:
    """Share of the references that the output contains, ignoring case; None without references.

    Source: RULER (arXiv 2404.06654), the score of all tasks except question answering.
    """
    found = _found(output, references)
    return sum(found) / len(found) if found else None


def string_match_any(output: str, references: Sequence[str]) -> float | None:
    """1 if the output contains any of the references, ignoring case, else 0; None without references.

    Source: RULER (arXiv 2404.06654), the score of the two question answering tasks.
    """
    found = _found(output, references)
    return float(any(found)) if found else None


def _found(output: str, references: Sequence[str]) -> list[bool]:
    said = in_half_width(output).lower()
    # A blank reference is contained in every output.
    return [in_half_width(reference).lower() in said for reference in references if reference.strip()]


# Chinese and Japanese also write digits, Latin letters and marks at full width.
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def in_half_width(text: str) -> str:
    """The text with the usual digits, Latin letters and marks in place of full-width ones."""
    return text.translate(_HALF_WIDTH)


# More text never lowers these scores, so decoding can stop at a full one.
_NEVER_FALLING: tuple[Score, ...] = (string_match_all, string_match_any)


def answer_prompts(
    context: EvalContext,
    task: Any,
    length_tokens: int,
    num_items: int,
    build: Callable[[int], Prompt],
    score: Score,
    **scope: Any,
) -> list[Sample]:
    """Builds prompts, has the model answer them greedily, and scores the outputs.

    Args:
        context: the model, the tokenizer, the documents and the seed.
        task: the task that the prompts belong to.
        length_tokens: maximum tokens of prompt and answer.
        num_items: number of prompts.
        build: builds the prompt of an index; depends only on it, the task's settings, the length and the seed.
        score: scores an output by the prompt's references.
        **scope: as in `EvalContext.samples`.

    Returns:
        One sample per prompt, in order, with its `score`.

    Raises:
        ConfigError: a prompt does not fit the length.
        CheckpointError: a logit is NaN or infinite.
    """
    tokenizer = context.tokenizer
    eos_ids = end_token_ids(context.model, tokenizer)

    def answer(indices: Sequence[int], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        for index, prompt in zip(indices, prompts, strict=True):
            _check_fits(task, length_tokens, index, prompt)

        def has_full_score(place: int, output_ids: list[int]) -> bool:
            return score(tokenizer.decode(output_ids), prompts[place].references) == 1

        outputs = greedy_outputs(
            context.model,
            prompts,
            eos_ids=eos_ids,
            enough=has_full_score if score in _NEVER_FALLING else None,
            where=lambda place: _where(task, length_tokens, indices[place], prompts[place]),
        )
        return [
            {
                **prompt.details,
                "prompt_tokens": len(prompt.prompt_ids),
                "max_new_tokens": prompt.max_new_tokens,
                "prompt_sha256": hash_tokens(prompt.prompt_ids),
                "references": prompt.references,
                "output": tokenizer.decode(output_ids),
                "output_ids": output_ids,
                "score": score(tokenizer.decode(output_ids), prompt.references),
            }
            for prompt, output_ids in zip(prompts, outputs, strict=True)
        ]

    return prompt_samples(context, task, length_tokens, num_items, build, answer, **scope)


def prompt_samples(
    context: EvalContext,
    task: Any,
    length_tokens: int,
    num_items: int,
    build: Callable[[int], Prompt],
    answer: Callable[[Sequence[int], Sequence[Prompt]], list[dict[str, Any]]],
    *,
    judged: str = "score",
    **scope: Any,
) -> list[Sample]:
    """One sample per prompt, in batches; warns if nothing was answered right.

    Args:
        context, task, length_tokens, num_items, build: as in `answer_prompts`.
        answer: given indices and prompts, returns what their samples tell besides task and length.
        judged: the entry of a sample that is above 0 for a right answer, and None where it cannot be scored.
        **scope: as in `EvalContext.samples`; a `kind` that ends in `_control` is not supposed to be answered.
    """

    def compute(indices: Sequence[int]) -> list[dict[str, Any]]:
        return answer(indices, [build(index) for index in indices])

    batch_items = max(1, BATCH_TOKENS // length_tokens)
    samples = context.samples(task, length_tokens, num_items, compute, batch_items=batch_items, **scope)
    scores = [float(sample[judged]) for sample in samples if sample[judged] is not None]
    if scores and not str(scope.get("kind", "")).endswith("_control"):
        _warn_of_zeros(context, task, length_tokens, scores, lambda: build(0).prompt_ids, samples[0]["output"])
    return samples


_SHOWN_CHARACTERS = 300


def _warn_of_zeros(
    context: EvalContext,
    task: Any,
    length_tokens: int,
    scores: Sequence[float],
    prompt_ids: Callable[[], Sequence[int]],
    output: str,
) -> None:
    """Warns if all scores are 0, once per family of tasks, and shows the first prompt and its output: is it their form?

    No warning beyond the model's window, where zeros are expected, or if shorter prompts of the family were answered.
    """
    family = task.name.partition("_")[0]
    if any(scores):
        context.answered.add(family)
    if family in context.answered or length_tokens > longest_input(context.model.config):
        return
    context.answered.add(family)
    if not process_state().is_main_process:
        return
    ids, most = list(prompt_ids()), _SHOWN_CHARACTERS
    # A token is at least a byte; the end shows where the answer begins.
    begin, end = (context.tokenizer.decode(part) for part in (ids[:most], ids[-most:]))
    shown = repr(end) if len(ids) <= most else f"{begin[: most // 2]!r} ... {end[-most:]!r}"
    logger.warning(
        f"{task.name} at {length_tokens}: all {len(scores)} scores are 0. Check that prompt and answer have the form "
        f"that the model expects: the prompt {shown} was answered {output!r}"
    )


def _where(task: Any, length_tokens: int, index: int, prompt: Prompt) -> str:
    # Tasks of several kinds count the items of each from 0.
    kind = f", kind {prompt.details['kind']}" if "kind" in prompt.details else ""
    return f"{task.name}, length {length_tokens}{kind}, item {index}"


def _check_fits(task: Any, length_tokens: int, index: int, prompt: Prompt) -> None:
    if prompt.num_tokens > length_tokens:
        raise ConfigError(
            f"{task.name}: prompt {index} takes {prompt.num_tokens} tokens ({len(prompt.prompt_ids)} and "
            f"{prompt.max_new_tokens} for the answer) and the length is {length_tokens}; prompts are never truncated: "
            f"ask for at least {prompt.num_tokens}",
            page="length-does-not-fit",
        )


def score_results(
    context: EvalContext,
    task: Any,
    length_tokens: int,
    samples: Sequence[Sample],
    *,
    metric: str = "score",
    **details: Any,
) -> list[EvalResult]:
    """Mean score with Wilson's interval, for scores of 0 and 1 and for graded ones.

    Args:
        context: the context that the samples were measured in.
        task: the task that the samples belong to.
        length_tokens: prompt and answer tokens.
        samples: each has a `score`, 0 to 1, or None if it cannot be scored: these are counted as skipped.
        metric: name of the result.
        **details: details that distinguish this result from others.

    Returns:
        One result; none, after a warning, if no sample can be scored.
    """
    scores = [sample["score"] for sample in samples if sample["score"] is not None]
    if not scores:
        if process_state().is_main_process:
            kind = f", kind {details['kind']}" if "kind" in details else ""
            logger.warning(
                f"{task.name}{kind} at {length_tokens}: none of {len(samples)} "
                f"samples can be scored; they are skipped, and there is no {metric}"
            )
        return []
    return [
        context.result(
            task,
            length_tokens,
            metric,
            wilson(math.fsum(scores), len(scores)),
            num_samples=len(scores),
            num_skipped=len(samples) - len(scores),
            interval="Wilson",
            **details,
        )
    ]


@contextmanager
def texts_of_any_length(tokenizer: Any) -> Iterator[None]:
    """Within, the tokenizer does not warn of texts longer than its model's window.

    The search for the size of a prompt tokenizes texts that are too long; the model's inputs are checked elsewhere.
    """
    limit = getattr(tokenizer, "model_max_length", None)
    tokenizer.model_max_length = 2**62
    try:
        yield
    finally:
        tokenizer.model_max_length = limit


def opening_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that begins a prompt, with the beginning-of-sequence token if the tokenizer adds one."""
    bare = list(tokenizer.encode(text, add_special_tokens=False))
    full = list(tokenizer.encode(text, add_special_tokens=True))
    # Some tokenizers also add an end token, which would end the document inside a prompt.
    while len(full) > len(bare) and full[-len(bare) :] != bare:
        full.pop()
    return full


def split_answers(tokenizer: Any, question: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Token ids of a question and of each answer after it, tokenized as one text.

    A token across the end of the question belongs to the answers, all of which begin at the same token.
    """
    question_ids = list(tokenizer.encode(question, add_special_tokens=False))
    together = [list(tokenizer.encode(question + answer, add_special_tokens=False)) for answer in answers]
    shared = min(shared_length(question_ids, ids) for ids in together)
    return question_ids[:shared], [ids[shared:] for ids in together]


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens that two sequences have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
