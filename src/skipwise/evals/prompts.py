"""Prompts with known answers: what builds, answers and scores them, for every task that asks the model something."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skipwise.distributed import process_state
from skipwise.errors import ConfigError, DataError
from skipwise.evals.context import EvalContext
from skipwise.model import longest_input
from skipwise.records.results import EvalResult, Sample, hash_tokens
from skipwise.records.stats import wilson
from skipwise.runtime.decode import BATCH_TOKENS, end_token_ids, greedy_outputs

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question with what a right answer contains.

    Attributes:
        prompt_ids: token ids up to where the answer begins.
        references: texts that the output should contain.
        max_new_tokens: tokens that the answer may take.
        answer_ids: a continuation that, written greedily right after the prompt, settles the score as 1; None where no
            single one does.
        details: what else the prompt's sample tells, such as its depth; JSON values.
    """

    prompt_ids: list[int]
    references: list[str]
    max_new_tokens: int
    answer_ids: list[int] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        answer_tokens = len(self.answer_ids or ())
        if not self.prompt_ids or self.max_new_tokens < max(1, answer_tokens):
            raise ConfigError(
                f"a prompt of {len(self.prompt_ids)} tokens with a right answer of {answer_tokens} may be answered in "
                f"{self.max_new_tokens}; give a prompt, and max_new_tokens of at least {max(1, answer_tokens)}"
            )

    @property
    def num_tokens(self) -> int:
        """Prompt and longest answer together: what must fit the length."""
        return len(self.prompt_ids) + self.max_new_tokens


Score = Callable[[str, Sequence[str]], float | None]
"""Judges an output by its references: 0 to 1, or None where there is nothing to judge it by."""


def string_match_all(output: str, references: Sequence[str]) -> float | None:
    """Share of the references that the output contains, in any case of letters; None without references.

    Source: RULER (arXiv 2404.06654), the score of all tasks but question answering.
    """
    found = _found(output, references)
    return sum(found) / len(found) if found else None


def string_match_any(output: str, references: Sequence[str]) -> float | None:
    """1 if the output contains any of the references, in any case of letters, else 0; None without references.

    Source: RULER (arXiv 2404.06654), the score of the two question answering tasks.
    """
    found = _found(output, references)
    return float(any(found)) if found else None


def _found(output: str, references: Sequence[str]) -> list[bool]:
    # A blank reference is in every output and says nothing.
    return [reference.lower() in output.lower() for reference in references if reference.strip()]


# More text never lowers these, so an output with a full score needs no more of it.
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
        context: model, tokenizer, documents and seed.
        task: whose prompts they are.
        length_tokens: what prompt and answer must fit.
        num_items: number of prompts.
        build: the prompt of an index; a pure function of it, of the task's settings, the length and the seed.
        score: judges an output by the prompt's references.
        **scope: JSON values that the prompts depend on besides, such as a cut.

    Returns:
        One sample per prompt, in order, with its `score`.

    Raises:
        ConfigError: when a prompt does not fit the length.
        CheckpointError: when a logit is NaN or infinite.
    """
    tokenizer = context.tokenizer
    eos_ids = end_token_ids(context.model, tokenizer)

    def answer(indices: Sequence[int]) -> list[Sample]:
        prompts = [build(index) for index in indices]
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
            _sample(task, length_tokens, prompt, output_ids, tokenizer.decode(output_ids), score)
            for prompt, output_ids in zip(prompts, outputs, strict=True)
        ]

    batch_items = max(1, BATCH_TOKENS // length_tokens)
    samples = context.samples(task, length_tokens, num_items, answer, batch_items=batch_items, **scope)
    # A control is not to be answered.
    if not str(scope.get("kind", "")).endswith("_control"):
        scores = [sample["score"] for sample in samples if sample["score"] is not None]
        warn_of_zeros(context, task, length_tokens, scores, lambda: build(0).prompt_ids, samples[0]["output"])
    return samples


_SHOWN_CHARACTERS = 300


def warn_of_zeros(
    context: EvalContext,
    task: Any,
    length_tokens: int,
    scores: Sequence[float],
    prompt_ids: Callable[[], Sequence[int]],
    output: str,
) -> None:
    """Warns where nothing at all was answered right, and shows a prompt and its answer, raw: it may be their form.

    Not beyond the model's window, where that is no wonder, nor where shorter prompts of such tasks were answered; and
    once for a family of tasks.

    Args:
        context: what was measured.
        task: whose scores they are.
        length_tokens: of the prompts.
        scores: of the samples that can be scored.
        prompt_ids: makes the first prompt's token ids.
        output: the answer to it.
    """
    family = task.name.partition("_")[0]
    if any(scores):
        context.answered.add(family)
    if not scores or family in context.answered or length_tokens > longest_input(context.model.config):
        return
    context.answered.add(family)
    if not process_state().is_main_process:
        return
    ids, most = list(prompt_ids()), _SHOWN_CHARACTERS
    # A token is a byte at least; the end shows where the answer begins.
    begin, end = (context.tokenizer.decode(part) for part in (ids[:most], ids[-most:]))
    shown = repr(end) if len(ids) <= most else f"{begin[: most // 2]!r} ... {end[-most:]!r}"
    logger.warning(
        f"{task.name} at {length_tokens}: all {len(scores)} scores are 0. If that is not the model's ability but the "
        f"form of prompts or answers, it shows here, raw: the prompt {shown} was answered {output!r}"
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
            f"ask for at least {prompt.num_tokens}"
        )


def _sample(task: Any, length_tokens: int, prompt: Prompt, output_ids: list[int], output: str, score: Score) -> Sample:
    return {
        "task": task.name,
        "length_tokens": length_tokens,
        **prompt.details,
        "prompt_tokens": len(prompt.prompt_ids),
        "max_new_tokens": prompt.max_new_tokens,
        "prompt_sha256": hash_tokens(prompt.prompt_ids),
        "references": prompt.references,
        "output": output,
        "output_ids": output_ids,
        "score": score(output, prompt.references),
    }


def score_results(
    context: EvalContext,
    task: Any,
    length_tokens: int,
    samples: Sequence[Sample],
    *,
    metric: str = "score",
    **details: Any,
) -> list[EvalResult]:
    """Mean score with Wilson's interval, as `wilson` has it for right and wrong and for graded scores.

    Args:
        context: what the samples were measured with.
        task: whose samples they are.
        length_tokens: prompt and answer tokens.
        samples: each with a `score`, 0 to 1, or None where it cannot be judged: those are counted, as skipped, and not
            averaged.
        metric: what the result is called.
        **details: what tells this result from its neighbours.

    Returns:
        One result; none, and a warning that says so, when no sample at all can be judged.
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

    Whoever looks for the size of a prompt tokenizes what is too long, too; what the model is shown is checked apart.
    """
    limit = getattr(tokenizer, "model_max_length", None)
    tokenizer.model_max_length = 2**62
    try:
        yield
    finally:
        tokenizer.model_max_length = limit


def opening_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of the text that begins a prompt, with the token that the tokenizer puts before a text, if it does."""
    bare = list(tokenizer.encode(text, add_special_tokens=False))
    full = list(tokenizer.encode(text, add_special_tokens=True))
    # A few tokenizers close a text with an end token; inside a prompt it would end the document.
    while len(full) > len(bare) and full[-len(bare) :] != bare:
        full.pop()
    return full


def split_answer(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of a question and of the answer as it follows it.

    They are what the tokenizer makes of both together, so a leading space stays where it belongs, and the question may
    end a token early.
    """
    question_ids = list(tokenizer.encode(question, add_special_tokens=False))
    together = list(tokenizer.encode(question + answer, add_special_tokens=False))
    shared = len(question_ids)
    while shared and together[:shared] != question_ids[:shared]:
        shared -= 1
    return together[:shared], together[shared:]


def running_text(context: EvalContext, num_tokens: int, rng: np.random.Generator) -> list[int]:
    """Token ids of documents one after the other, from a random one on, cut at `num_tokens`.

    Raises:
        DataError: when there are no documents, or none with a token.
    """
    if not len(context.documents):
        raise DataError("a haystack of documents was asked for and there are none: give documents, or take the filler")
    bos = context.tokenizer.bos_token_id
    text: list[int] = []
    start = index = int(rng.integers(len(context.documents)))
    while len(text) < num_tokens:
        if index - start == len(context.documents) and not text:
            raise DataError(f"none of the {len(context.documents)} documents has a token, which a haystack needs")
        document = context.documents[index % len(context.documents)]
        begins = int(bos is not None and len(document) > 0 and document[0] == bos)
        text += document[begins : begins + num_tokens - len(text)].tolist()
        index += 1
    return text
