"""A prompt as text, and its tokens: what every family of tasks hands to the search for the length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from skipwise.data.tokens import encoder_of
from skipwise.errors import ConfigError
from skipwise.evals.tasks.passkey_prompt import FILLER
from skipwise.evals.thinking import opens_thought, thinking_switches, without_thought


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One prompt as text.

    Attributes:
        request: instruction, context and question.
        answer_prefix: the words that the answer continues; they begin a chat model's turn.
        references: what the answer must contain.
        details: JSON values that belong in the sample.
    """

    request: str
    answer_prefix: str
    references: list[str]
    details: dict[str, Any] = field(default_factory=dict)


Drafter = Callable[[int, int], Draft]
"""Makes the prompt with so many units of haystack and so many filler words; a pure function of the two numbers."""


class EncodedDraft(NamedTuple):
    """A draft with its tokens."""

    draft: Draft
    prompt_ids: list[int]


class PromptEncoder:
    """Turns drafts into tokens; control tokens that a draft spells are text.

    Args:
        tokenizer: a tokenizer of the transformers library.
        bos_ids: the token ids that go before every input without a chat template: one or none.
        chat: put the request into a user's turn of the tokenizer's chat template; the answer prefix follows the
            assistant's header, behind an empty thought where the template opens one.
        thinks: leave a chat model its thought, and the words to begin its answer with to itself.

    Raises:
        ConfigError: when a chat is asked for and the tokenizer has no template.
    """

    def __init__(
        self, tokenizer: Any, *, bos_ids: Sequence[int] = (), chat: bool = False, thinks: bool = False
    ) -> None:
        if chat and not getattr(tokenizer, "chat_template", None):
            raise ConfigError("chat is true but the tokenizer has no chat template: set chat to false")
        self._tokenizer = tokenizer
        self._bos_ids = list(bos_ids)
        self._chat, self._thinks = chat, thinks

    def encode(self, draft: Draft) -> EncodedDraft:
        """The draft with the tokens that the model reads."""
        if not self._chat:
            return EncodedDraft(draft, self._bos_ids + self._plain(f"{draft.request} {draft.answer_prefix}"))
        messages, encoder = [{"role": "user", "content": draft.request}], encoder_of(self._tokenizer)
        switches: Any = thinking_switches(self._tokenizer, on=self._thinks)
        # The template writes the beginning-of-sequence token itself.
        if self._thinks:
            return EncodedDraft(draft, encoder.encode_chat(messages, **switches))
        ids = encoder.encode_chat(messages, finish=without_thought, ending=draft.answer_prefix, **switches)
        return EncodedDraft(draft, ids)

    @property
    def opens_thought(self) -> bool:
        """Whether prompts end where a thought begins."""
        if not self._thinks:
            return False
        switches: Any = thinking_switches(self._tokenizer, on=True)
        how = {"tokenize": False, "add_generation_prompt": True, **switches}
        return opens_thought(self._tokenizer.apply_chat_template([{"role": "user", "content": ""}], **how))

    def answer_ids(self, draft: Draft, max_tokens: int) -> list[int] | None:
        """Tokens whose appearance right after the prompt puts the first reference into the output; None if unsure."""
        together = self._plain(f"{draft.answer_prefix} {draft.references[0]}")
        answer = together[len(self._plain(draft.answer_prefix)) :]
        # A tokenizer that merges the prefix's end with the answer's beginning leaves too little here.
        proves = draft.references[0] in self._tokenizer.decode(answer)
        return answer if proves and len(answer) <= max_tokens else None

    def _plain(self, text: str) -> list[int]:
        return encoder_of(self._tokenizer).encode(text)


_FILLER_WORDS = FILLER.split()


def filler_words(num_words: int) -> str:
    """So many words of sentences that say nothing: what a prompt is topped up with."""
    return " ".join(_FILLER_WORDS[index % len(_FILLER_WORDS)] for index in range(num_words))


def filler_lines(num_words: int) -> list[str]:
    """The same words by line, each line one round of the filler's sentences; the last line may break off."""
    rounds, rest = divmod(num_words, len(_FILLER_WORDS))
    return [filler_words(len(_FILLER_WORDS))] * rounds + ([filler_words(rest)] if rest else [])


def numbered(entries: Sequence[str]) -> str:
    """`1. first 2. second ...`"""
    return " ".join(f"{place}. {entry}" for place, entry in enumerate(entries, 1))
