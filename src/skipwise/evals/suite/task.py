"""Runs a suite on a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.forward import logit_pieces
from skipwise.evals.prompts import Prompt, answer_prompts, score_results, string_match_all
from skipwise.evals.records import EvalResult, Measurement, Sample, hash_tokenizer, hash_tokens
from skipwise.evals.suite.folder import SuiteFolder
from skipwise.evals.suite.item import SLACK_TOKENS, EncodedItem, Item, encode_item, shared_length, total_tokens
from skipwise.evals.suite.kind import NUM_DEPTHS
from skipwise.evals.suite.sentences import squeezed


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Scores of a private benchmark that `build_suite` made of documents, by length and kind of question.

    Open answers are generated greedily; a number counts when the output contains it, a continuation when the output
    begins with it, white space and capitals aside. Answers with choices are not generated: the choice with the highest
    log-likelihood after the prompt counts. That way a base model which would rather write on, or one which explains
    itself first, is judged by the same measure, and no output is left that names no choice or two. A tie, which rounded
    logits bring about, counts as the guess that it is: one over the number of the likeliest, if the answer is among
    them. A tokenizer that does not write the choices in one token each makes an item unscorable.

    `length_tokens` of a result is the length that the suite was built for. Another tokenizer than the suite's counts
    otherwise: what its prompts take is in the details, and prompts beyond the model's window are refused.

    Attributes:
        folder: of the suite.
    """

    name: ClassVar[str] = "suite"
    folder: str

    @property
    def uses_documents(self) -> bool:
        """No: the suite brings its text."""
        return False

    @property
    def lengths(self) -> list[int]:
        """The lengths that the suite was built for, ascending."""
        return SuiteFolder(self.folder).lengths

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length, the kinds in the suite's order.

        Args:
            context: model and tokenizer.
            lengths: some of the suite's.

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
        # All prompts are measured before the first is computed.
        spans = {length: self._spans(context, suite, length) for length in lengths}
        for length in lengths:
            samples: list[Sample] = []
            results: list[EvalResult] = []
            for kind, about in suite.kinds.items():
                items = suite.items(length, kind)
                room = max(length, spans[length][kind][1])
                measured = _KindRun(self, context, suite.sha256, about["scoring"], items, length, room).samples()
                results += self._results(context, length, kind, about["chance"], spans[length][kind], measured)
                samples += measured
            yield Measurement(results, samples)

    def _spans(self, context: EvalContext, suite: SuiteFolder, length: int) -> dict[str, tuple[int, int]]:
        """Fewest and most tokens that the items of each kind take with the model's tokenizer.

        Raises:
            ConfigError: when the most are beyond the model's window, which the length is not.
        """
        same = hash_tokenizer(context.tokenizer) == suite.index["tokenizer"]["sha256"]
        window = context.model.config.get_text_config().max_position_embeddings
        spans = {}
        for kind in suite.kinds:
            items = suite.items(length, kind)
            counts = [
                item.num_tokens
                if same
                else total_tokens(_encoded(context.tokenizer, item), has_choices=bool(item.choices))
                for item in items
            ]
            # A length beyond the window was allowed on purpose, by `evaluate`.
            if length <= window < max(counts):
                raise ConfigError(
                    f"items of {length} tokens in suite {self.folder} take up to {max(counts)} with this model's "
                    f"tokenizer, and its window is {window}; prompts are never truncated: ask for shorter lengths, or "
                    "build the suite with this tokenizer"
                )
            spans[kind] = (min(counts), max(counts))
        return spans

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
            raise ConfigError(
                f"kind {kind} of suite {self.folder}: this model's tokenizer writes none of its choices in one token "
                "each, so they cannot be compared; build the suite without this kind"
            )
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


def choice_log_likelihoods(model: Any, encoded: EncodedItem, where: str) -> list[float] | None:
    """Natural log-likelihood of each answer after the prompt, up to a summand that all share.

    What all answers begin with is read as part of the prompt; each must then be told by exactly one token, so that one
    pass decides between them.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        encoded: prompt and answers.
        where: what is being measured, for an error's text.

    Returns:
        One value per answer, None where the tokenizer writes an answer in more tokens than that.
    """
    common = min(shared_length(encoded.answers[0], answer) for answer in encoded.answers[1:])
    if any(len(answer) != common + 1 for answer in encoded.answers):
        return None
    input_ids = as_input(encoded.prompt_ids, encoded.answers[0][:common])
    (piece,) = logit_pieces(model, input_ids, input_ids.shape[1] - 1, where=where)
    log_probabilities = piece.logits[0, -1].log_softmax(-1)
    return [log_probabilities[answer[common]].item() for answer in encoded.answers]


def begins_with(output: str, references: Sequence[str]) -> float:
    """1 if the output begins with the reference, white space and capitals aside, else 0."""
    return float(squeezed(output).startswith(squeezed(references[0])))


def _encoded(tokenizer: Any, item: Item) -> EncodedItem:
    return encode_item(tokenizer, item.prompt, item.choices or [item.answer])


def _details(item: Item) -> dict[str, Any]:
    return {"item": item.id, "kind": item.kind, "depth": item.depth, "item_sha256": item.sha256}
