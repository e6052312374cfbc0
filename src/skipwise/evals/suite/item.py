"""Items: what a suite asks, as text that any model can be given."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from skipwise.data.tokens import encoder_of
from skipwise.errors import DataError

# Tokens beyond the answer's own: a model may write it in other tokens, or with a word before it.
SLACK_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question about one long text.

    Attributes:
        id: kind, length and number.
        kind: what is asked, a key of `KINDS`, or `continue_control`.
        length_tokens: the length it was built for.
        num_tokens: what prompt and answer take with the suite's tokenizer: at most 2% less.
        answer: what follows the prompt when it is answered right, with the space before it.
        choices: all answers on offer, written as the answer is; empty where the answer is open.
        depth: place in the text of what is asked for, 0 start to 1 end; None where that is no single place.
        documents: names of the documents that the text is from.
        context: instruction and text.
        question: what follows the text; the prompt is `context + question`.
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
        """What the model is given."""
        return self.context + self.question

    @property
    def sha256(self) -> str:
        """Hash of all that is asked and all that is right."""
        asked = [self.context, self.question, self.answer, self.choices]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()

    def to_json(self) -> str:
        """One line of JSON, with the hash."""
        return json.dumps(asdict(self) | {"sha256": self.sha256}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Item":
        """Reads what `to_json` wrote.

        Raises:
            DataError: when it is something else or was changed.
        """
        try:
            record = json.loads(line)
            sha256 = record.pop("sha256")
            item = cls(**record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"item {line[:60]!r} of a suite cannot be read ({error}); build the suite again") from None
        if item.sha256 != sha256:
            raise DataError(f"item {item.id} of a suite was changed after it was built; build the suite again")
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
        least: fewest characters that hold all that is asked about.
        most: characters that there are.
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
        prompt_ids: of the prompt; it may end a token early where the tokenizer joins its end with every answer.
        answers: of each answer, in the order given.
    """

    prompt_ids: list[int]
    answers: list[list[int]]

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer."""
        return max(map(len, self.answers))


def encode_item(tokenizer: Any, prompt: str, answers: Sequence[str]) -> EncodedItem:
    """Tokenizes a prompt as a whole, as any other program would, and each answer as what the prompt and it add.

    Control tokens that the documents spell are text.

    Args:
        tokenizer: the model's own.
        prompt: context and question.
        answers: texts that may follow it.
    """
    tokenizer = encoder_of(tokenizer)
    # A merge at the joint reaches back into the last line at most: the long text is tokenized once.
    ending = prompt[prompt.rfind("\n") + 1 :]
    ending_ids = list(tokenizer.encode(ending, add_special_tokens=False))
    together = [list(tokenizer.encode(ending + answer, add_special_tokens=False)) for answer in answers]
    shared = min(shared_length(ending_ids, ids) for ids in together)
    prompt_ids = list(tokenizer.encode(prompt, add_special_tokens=True))
    # A few tokenizers close a text with an end token; inside a prompt it would end the document.
    opened_and_closed = list(tokenizer.encode(ending, add_special_tokens=True))
    closing = next(n for n in range(len(opened_and_closed)) if _ends_with(opened_and_closed, ending_ids, n))
    kept = len(prompt_ids) - closing - (len(ending_ids) - shared)
    return EncodedItem(prompt_ids[:kept], [ids[shared:] for ids in together])


def _ends_with(ids: Sequence[int], ending: Sequence[int], left_off: int) -> bool:
    end = len(ids) - left_off
    return list(ids[end - len(ending) : end]) == list(ending)


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many token ids two sequences have in common at their beginning."""
    return next(
        (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )


def total_tokens(encoded: EncodedItem, *, has_choices: bool) -> int:
    """What prompt and answer take of a window: a choice its own tokens, an open answer some more than the right one."""
    return len(encoded.prompt_ids) + encoded.longest_answer + (0 if has_choices else SLACK_TOKENS)
