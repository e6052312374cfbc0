"""Items: the questions of a suite, as text for any model."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from skipwise.data.tokens import encoder_of
from skipwise.errors import DataError
from skipwise.evals.prompts import opening_ids, split_answers

# Tokens beyond the answer's own: a model may write it in other tokens, or after another word.
SLACK_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question about one long text.

    Attributes:
        id: kind, length and number of the item.
        kind: kind of question: a key of `KINDS`, or `continue_control`.
        length_tokens: the length that it was built for, in tokens.
        num_tokens: tokens of prompt and answer with the suite's tokenizer, at most 2% fewer than `length_tokens`.
        answer: the right continuation of the prompt, with its leading space.
        choices: all answers to choose from, written like the answer; empty if the answer is open.
        depth: where in the text the asked passage is, from 0 (start) to 1 (end); None if it is not a single place.
        documents: names of the documents that the text comes from.
        context: instruction and text of the prompt.
        question: question after the text; the prompt is `context + question`.
    """

    id: str
    kind: str
    length_tokens: int
    num_tokens: int
    answer: str
    choices: list[str]
    depth: float | None
    documents: list[str]
    context: str
    question: str

    @property
    def prompt(self) -> str:
        """The model's input."""
        return self.context + self.question

    @property
    def sha256(self) -> str:
        """Hash of prompt, answer and choices."""
        asked = [self.context, self.question, self.answer, self.choices]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()

    def to_json(self) -> str:
        """One line of JSON, with the hash."""
        return json.dumps(asdict(self) | {"sha256": self.sha256}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Item":
        """Reads what `to_json` wrote.

        Raises:
            DataError: the line is not an item, or was changed.
        """
        try:
            record = json.loads(line)
            sha256 = record.pop("sha256")
            item = cls(**record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"item {line[:60]!r} of a suite cannot be read ({error}); build the suite again", page="changed-files"
            ) from None
        if item.sha256 != sha256:
            raise DataError(
                f"item {item.id} of a suite was changed after it was built; build the suite again", page="changed-files"
            )
        return item


class Passage(NamedTuple):
    """A text for a question, at one size.

    Attributes:
        text: instruction and text.
        depth: as in `Item`.
        documents: as in `Item`.
    """

    text: str
    depth: float | None
    documents: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A question whose text can still grow and shrink.

    Attributes:
        kind: as in `Item`.
        question: as in `Item`.
        answer: as in `Item`.
        choices: as in `Item`.
        assemble: makes the text with about this many characters of documents; more characters never make it shorter.
        least: minimum number of characters that contain all that is asked about.
        most: number of characters available.
    """

    kind: str
    question: str
    answer: str
    choices: Sequence[str] = ()
    assemble: Callable[[int], Passage]
    least: int
    most: int


class EncodedItem(NamedTuple):
    """Token ids of a prompt and of each answer as it follows the prompt.

    Attributes:
        prompt_ids: of the prompt, without its last token if the tokenizer merges that with every answer.
        answers: of each answer, in the given order.
        is_merged: whether the answers begin with that last token, so that their text begins before the answer.
    """

    prompt_ids: list[int]
    answers: list[list[int]]
    is_merged: bool = False

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer."""
        return max(map(len, self.answers))


def encode_item(tokenizer: Any, prompt: str, answers: Sequence[str]) -> EncodedItem:
    """Tokenizes a prompt as a whole, and each answer as what it adds to the prompt.

    Control tokens that the documents spell are read as text.

    Args:
        tokenizer: the model's tokenizer.
        prompt: context and question.
        answers: texts that may follow it.
    """
    tokenizer = encoder_of(tokenizer)
    # A token across the joint reaches back into the last line at most, so the long text is tokenized once.
    ending = prompt[prompt.rfind("\n") + 1 :]
    kept_ids, answer_ids = split_answers(tokenizer, ending, answers)
    cut_off = len(tokenizer.encode(ending, add_special_tokens=False)) - len(kept_ids)
    prompt_ids = list(tokenizer.encode(prompt, add_special_tokens=True))
    # Some tokenizers also add an end token, which would end the document inside a prompt.
    closing = len(tokenizer.encode(ending, add_special_tokens=True)) - len(opening_ids(tokenizer, ending))
    return EncodedItem(prompt_ids[: len(prompt_ids) - closing - cut_off], answer_ids, cut_off > 0)


def total_tokens(encoded: EncodedItem, *, has_choices: bool) -> int:
    """Tokens of prompt and longest answer; an open answer gets some more than the right one has."""
    return len(encoded.prompt_ids) + encoded.longest_answer + (0 if has_choices else SLACK_TOKENS)
