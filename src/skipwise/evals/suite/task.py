"""Runs a suite on a model."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, ClassVar

from pydantic import Field

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext
from skipwise.evals.prompts import Prompt, answer_prompts, score_results, string_match_all
from skipwise.evals.settings import NO_KEY, Settings
from skipwise.evals.suite.choice import choice_log_likelihoods
from skipwise.evals.suite.folder import SuiteFolder
from skipwise.evals.suite.item import SLACK_TOKENS, EncodedItem, Item, encode_item, total_tokens
from skipwise.evals.suite.kind import NUM_DEPTHS
from skipwise.evals.suite.sentences import squeezed
from skipwise.model import longest_input
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokenizer, hash_tokens

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite(Settings):
    """Scores of a private benchmark that `build_suite` made of documents, by length and kind of question.

    Open answers are generated greedily; a number counts when the output contains it, a continuation when the output
    begins with it, white space and capitals aside. Answers with choices are not generated: the choice with the highest
    log-likelihood after the prompt counts. That way a base model which would rather write on, or one which explains
    itself first, is judged by the same measure, and no output is left that names no choice or two. A tie, which rounded
    logits bring about, counts as the guess that it is: one over the number of the likeliest, if the answer is among
    them. Choices of several tokens count with all of these. Only where a tokenizer writes one choice as another, or as
    the beginning of another, is nothing told: such an item is skipped.

    `length_tokens` of a result is the length that the suite was built for. Another tokenizer than the suite's counts
    otherwise: what its prompts take is in the details, and prompts beyond the model's window are refused.

    Attributes:
        folder: of the suite.
    """

    name: ClassVar[str] = "suite"
    folder: Annotated[str, Field(min_length=1, description="the folder of a suite (--suite)")] = field(metadata=NO_KEY)

    @property
    def uses_documents(self) -> bool:
        """No: the suite brings its text."""
        return False

    @property
    def lengths(self) -> list[int]:
        """The lengths that the suite was built for, ascending."""
        return SuiteFolder(self.folder).lengths

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Refuses what cannot be measured before anything is.

        Args:
            context: model and tokenizer.
            lengths: to be measured.

        Raises:
            ConfigError: when the suite has no such length, or prompts of one do not fit the model's window.
            DataError: when the suite is incomplete or was changed.
        """
        suite = SuiteFolder(self.folder)
        if unknown := [length for length in lengths if length not in suite.lengths]:
            raise ConfigError(
                f"suite {self.folder} has no items of {', '.join(map(str, unknown))} tokens; its lengths are "
                f"{', '.join(map(str, suite.lengths))}: ask for some of these, or build a suite with the others"
            )
        window = longest_input(context.model.config)
        for length in lengths:
            most = max(high for _, high in _spans(self.folder, suite.sha256, context.tokenizer, length).values())
            # A length beyond the window was allowed on purpose, by `evaluate`.
            if length <= window < most:
                raise ConfigError(
                    f"items of {length} tokens in suite {self.folder} take up to {most} with this model's tokenizer, "
                    f"and its window is {window}; prompts are never truncated: ask for shorter lengths, or build the "
                    "suite with this tokenizer"
                )

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length, the kinds in the suite's order.

        Args:
            context: model and tokenizer.
            lengths: some of the suite's.

        Raises:
            ConfigError: as `check_lengths` does.
            DataError: as `check_lengths` does.
        """
        self.check_lengths(context, lengths)
        suite = SuiteFolder(self.folder)
        for length in lengths:
            spans = _spans(self.folder, suite.sha256, context.tokenizer, length)
            samples: list[Sample] = []
            results: list[EvalResult] = []
            for kind, about in suite.kinds.items():
                items = suite.items(length, kind)
                room = max(length, spans[kind][1])
                measured = _KindRun(self, context, suite.sha256, about["scoring"], items, length, room).samples()
                results += self._results(context, length, kind, about["chance"], spans[kind], measured)
                samples += measured
            yield Measurement(results, samples)

    def _results(
        self,
        context: EvalContext,
        length: int,
        kind: str,
        chance: float,
        span: tuple[int, int],
        samples: Sequence[Sample],
    ) -> list[EvalResult]:
        """The score of a kind, and where the answer stands in one place, the score of each part of the text."""
        about = {"kind": kind, "chance": chance, "tokens_from": span[0], "tokens_to": span[1]}
        if "chosen" in samples[0]:
            # A model that always takes the same choice scores at chance; here it shows.
            chosen = [choice for sample in samples for choice in sample["chosen"] or ()]
            about["times_chosen"] = {choice: chosen.count(choice) for choice in sorted(set(chosen))}
        if all(sample["score"] is None for sample in samples):
            logger.warning(
                f"suite {self.folder}, kind {kind} at {length}: none of {len(samples)} items can be scored, for this "
                "model's tokenizer does not tell their choices apart; there is no score of this kind"
            )
            return []
        results = score_results(context, self, length, samples, **about)
        for part in range(NUM_DEPTHS):
            low, high = part / NUM_DEPTHS, (part + 1) / NUM_DEPTHS
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


@dataclass(frozen=True, slots=True)
class _KindRun:
    """The items of one kind and length, on one model.

    Attributes:
        room: tokens that the longest of them takes, at least the length.
    """

    task: Suite
    context: EvalContext
    suite_sha256: str
    scoring: str
    items: Sequence[Item]
    length: int
    room: int

    def samples(self) -> list[Sample]:
        """One sample per item."""
        scope: dict[str, Any] = {"kind": self.items[0].kind, "suite_sha256": self.suite_sha256}
        if self.scoring == "likeliest":
            return self.context.samples(
                self.task,
                self.length,
                len(self.items),
                lambda indices: [self._chosen(self.items[index]) for index in indices],
                description=f"suite {self.items[0].kind} at {self.length}",
                **scope,
            )
        score = {"contains": string_match_all, "begins": begins_with}[self.scoring]
        samples = answer_prompts(self.context, self.task, self.room, len(self.items), self._prompt, score, **scope)
        return [sample | {"length_tokens": self.length} for sample in samples]

    def _prompt(self, index: int) -> Prompt:
        item = self.items[index]
        encoded = _encoded(self.context.tokenizer, item)
        return Prompt(
            prompt_ids=encoded.prompt_ids,
            references=[item.answer.strip()],
            max_new_tokens=encoded.longest_answer + SLACK_TOKENS,
            answer_ids=encoded.answers[0],
            details=_details(item),
        )

    def _chosen(self, item: Item) -> Sample:
        """Which choice is the likeliest; `chosen` has several where they tie, and is None where none can be told."""
        encoded = _encoded(self.context.tokenizer, item)
        where = f"suite, item {item.id}"
        likelihoods = choice_log_likelihoods(self.context.model, encoded, where)
        chosen = score = None
        if likelihoods is not None:
            best = max(likelihoods)
            chosen = [choice.strip() for choice, value in zip(item.choices, likelihoods, strict=True) if value == best]
            score = (item.answer.strip() in chosen) / len(chosen)
        return {
            "task": self.task.name,
            "length_tokens": self.length,
            **_details(item),
            "prompt_tokens": len(encoded.prompt_ids),
            "prompt_sha256": hash_tokens(encoded.prompt_ids),
            "references": [item.answer.strip()],
            "choices": [choice.strip() for choice in item.choices],
            "log_likelihoods": likelihoods,
            "chosen": chosen,
            "score": score,
        }


def begins_with(output: str, references: Sequence[str]) -> float:
    """1 if the output begins with the reference, white space and capitals aside, else 0."""
    return float(squeezed(output).startswith(squeezed(references[0])))


@lru_cache(maxsize=32)
def _spans(folder: str, _sha256: str, tokenizer: Any, length: int) -> dict[str, tuple[int, int]]:
    """Fewest and most tokens that the items of each kind take with a tokenizer.

    Found out once, for the check and for the run, and anew when the suite has changed.
    """
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
