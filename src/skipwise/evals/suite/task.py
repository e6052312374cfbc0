"""Runs a suite on a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import permutations
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.prompts import Prompt, answer_prompts, score_results, shared_length, string_match_all
from skipwise.evals.settings import NO_KEY, Settings
from skipwise.evals.suite.folder import SuiteFolder
from skipwise.evals.suite.item import SLACK_TOKENS, EncodedItem, Item, encode_item, total_tokens
from skipwise.evals.suite.kinds import NUM_DEPTHS, Scoring, stratum
from skipwise.evals.suite.prose import spelled_alike
from skipwise.model import longest_input
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokenizer, hash_tokens
from skipwise.runtime.forward import logit_pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite(Settings):
    """Scores of a private benchmark that `build_suite` made of documents, by length and kind of question.

    Open answers are decoded greedily. A number counts if the output contains it, a continuation if the output begins
    with it, ignoring white space, case and whether characters are full-width. Where an item has choices, nothing is
    decoded: the choice with the highest log-likelihood after the prompt counts. So a base model that
    continues the text and a model that explains itself first are measured alike. A tie, which rounded logits can cause,
    counts as a guess: 1/n if the answer is among the n most likely choices. All tokens of a choice count. An item is
    skipped only if two choices have the same tokens, or if the tokens of one begin with those of another.

    `length_tokens` of a result is the length that the suite was built for. With another tokenizer, prompts have other
    lengths: the details state them, and prompts beyond the model's window are refused.

    Attributes:
        folder: folder of the suite.
    """

    name: ClassVar[str] = "suite"
    folder: Annotated[str, Field(min_length=1, description="the folder of a suite (--suite)")] = field(metadata=NO_KEY)

    @property
    def uses_documents(self) -> bool:
        """Always false: the suite contains its text."""
        return False

    @property
    def lengths(self) -> list[int]:
        """The lengths that the suite was built for, ascending."""
        return SuiteFolder(self.folder).lengths

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that the suite is complete and has these lengths, and that its prompts fit the model's window."""
        suite = SuiteFolder(self.folder)
        if unknown := [length for length in lengths if length not in suite.lengths]:
            raise ConfigError(
                f"suite {self.folder} has no items of {', '.join(map(str, unknown))} tokens; its lengths are "
                f"{', '.join(map(str, suite.lengths))}: ask for some of these, or build a suite with the others",
                page="length-does-not-fit",
            )
        window = longest_input(context.model.config)
        for length in lengths:
            most = max(high for _, high in _spans(self.folder, suite.sha256, context.tokenizer, length).values())
            # `evaluate` has allowed lengths beyond the window.
            if length <= window < most:
                raise ConfigError(
                    f"items of {length} tokens in suite {self.folder} take up to {most} with this model's tokenizer, "
                    f"and its window is {window}; prompts are never truncated: ask for shorter lengths, or build the "
                    "suite with this tokenizer",
                    page="length-does-not-fit",
                )

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length, the kinds in the suite's order."""
        self.check_lengths(context, lengths)
        suite = SuiteFolder(self.folder)
        for length in lengths:
            spans = _spans(self.folder, suite.sha256, context.tokenizer, length)
            samples: list[Sample] = []
            results: list[EvalResult] = []
            for kind, about in suite.kinds.items():
                items, span = suite.items(length, kind), spans[kind]
                scope = {"kind": items[0].kind, "suite_sha256": suite.sha256}
                if about["scoring"] == "likeliest":
                    measured = self._choose(context, length, items, scope)
                else:
                    score = {"contains": string_match_all, "begins": begins_with}[about["scoring"]]
                    # The longest prompt may exceed the length with another tokenizer.
                    room = max(length, span[1])
                    build = partial(_prompt, context.tokenizer, items, about["scoring"])
                    answered = answer_prompts(context, self, room, len(items), build, score, **scope)
                    measured = [sample | {"length_tokens": length} for sample in answered]
                results += self._results(context, length, kind, about["chance"], span, measured)
                samples += measured
            yield Measurement(results, samples)

    def _choose(
        self, context: EvalContext, length: int, items: Sequence[Item], scope: Mapping[str, Any]
    ) -> list[Sample]:
        """One sample per item with choices."""

        def choose(indices: Sequence[int]) -> list[dict[str, Any]]:
            return [_chosen(context, items[index]) for index in indices]

        description = f"suite {scope['kind']} at {length}"
        return context.samples(self, length, len(items), choose, description=description, **scope)

    def _results(
        self,
        context: EvalContext,
        length: int,
        kind: str,
        chance: float,
        span: tuple[int, int],
        samples: Sequence[Sample],
    ) -> list[EvalResult]:
        """The score of a kind, and of each part of the text if the answers have depths."""
        about = {"kind": kind, "chance": chance, "tokens_from": span[0], "tokens_to": span[1]}
        if "chosen" in samples[0]:
            # Shows a model that always takes the same choice, which scores at chance.
            chosen = [choice for sample in samples for choice in sample["chosen"] or ()]
            about["times_chosen"] = {choice: chosen.count(choice) for choice in sorted(set(chosen))}
        results = score_results(context, self, length, samples, **about)
        for part in range(NUM_DEPTHS):
            low, high = stratum(part)
            cell = [
                sample
                for sample in samples
                if sample["depth"] is not None and min(int(sample["depth"] * NUM_DEPTHS), NUM_DEPTHS - 1) == part
            ]
            if any(sample["score"] is not None for sample in cell):
                results += score_results(
                    context, self, length, cell, metric="score_at_depth", **about, depth_from=low, depth_to=high
                )
        return results


def _prompt(tokenizer: Any, items: Sequence[Item], scoring: Scoring, index: int) -> Prompt:
    item = items[index]
    encoded = _encoded(tokenizer, item)
    # In scripts without spaces, the last word of the question and the first of the answer are often one token.
    is_written_with_it = scoring == "begins" and encoded.is_merged
    written = tokenizer.decode(encoded.answers[0]) if is_written_with_it else item.answer
    return Prompt(
        prompt_ids=encoded.prompt_ids,
        references=[written.strip()],
        max_new_tokens=encoded.longest_answer + SLACK_TOKENS,
        answer_ids=encoded.answers[0],
        details=_details(item),
    )


def _chosen(context: EvalContext, item: Item) -> dict[str, Any]:
    """A sample's content. `chosen` has several choices if they tie, and is None if the tokenizer confuses choices."""
    encoded = _encoded(context.tokenizer, item)
    likelihoods = choice_log_likelihoods(context.model, encoded, f"suite, item {item.id}")
    chosen = score = None
    if likelihoods is not None:
        best = max(likelihoods)
        chosen = [choice.strip() for choice, value in zip(item.choices, likelihoods, strict=True) if value == best]
        score = (item.answer.strip() in chosen) / len(chosen)
    return {
        **_details(item),
        "prompt_tokens": len(encoded.prompt_ids),
        "prompt_sha256": hash_tokens(encoded.prompt_ids),
        "references": [item.answer.strip()],
        "choices": [choice.strip() for choice in item.choices],
        "log_likelihoods": likelihoods,
        "chosen": chosen,
        "score": score,
    }


def choice_log_likelihoods(model: Any, encoded: EncodedItem, where: str) -> list[float] | None:
    """Natural log-likelihood of each answer after the prompt, up to a common summand.

    All tokens of an answer count, except those that all answers begin with. One pass serves all answers that differ
    only in their last tokens, such as single letters, even if some have a separate token for the leading space.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        encoded: prompt and answers.
        where: what is being measured, for error messages.

    Returns:
        One value per answer; None if the tokens of one are those of another, or the beginning of another.
    """
    answers = encoded.answers
    if any(one == other[: len(one)] for one, other in permutations(answers, 2)):
        return None
    common = min(shared_length(answers[0], answer) for answer in answers[1:])
    values: dict[int, float] = {}
    # All but the last token of an answer is read; one pass serves all answers that begin what it reads.
    for head in sorted((answer[:-1] for answer in answers), key=len, reverse=True):
        served = [
            index
            for index, answer in enumerate(answers)
            if index not in values and answer[:-1] == head[: len(answer) - 1]
        ]
        if served:
            input_ids = as_input(encoded.prompt_ids, head)
            pieces = logit_pieces(model, input_ids, len(encoded.prompt_ids) + common - 1, where=where)
            log_probabilities = torch.cat([piece.logits[0] for piece in pieces]).log_softmax(-1)
            for index in served:
                scored = answers[index][common:]
                values[index] = log_probabilities[range(len(scored)), scored].sum().item()
    return [values[index] for index in range(len(answers))]


def begins_with(output: str, references: Sequence[str]) -> float:
    """1 if the output begins with the reference, ignoring white space, case and full width, else 0."""
    return float(spelled_alike(output).startswith(spelled_alike(references[0])))


@lru_cache(maxsize=32)
def _spans(folder: str, _sha256: str, tokenizer: Any, length: int) -> dict[str, tuple[int, int]]:
    """Minimum and maximum tokens of each kind's items; kept from the check to the run, unless the suite changes."""
    suite = SuiteFolder(folder)
    same = hash_tokenizer(tokenizer) == suite.index["tokenizer"]["sha256"]
    spans = {}
    for kind in suite.kinds:
        counts = [
            item.num_tokens if same else total_tokens(_encoded(tokenizer, item), has_choices=bool(item.choices))
            for item in suite.items(length, kind)
        ]
        spans[kind] = (min(counts), max(counts))
    return spans


def _encoded(tokenizer: Any, item: Item) -> EncodedItem:
    return encode_item(tokenizer, item.prompt, item.choices or [item.answer])


def _details(item: Item) -> dict[str, Any]:
    return {"item": item.id, "kind": item.kind, "depth": item.depth, "item_sha256": item.sha256}
