"""Prompts as text, and their tokens: plain for base models, or in a turn of the chat template."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from skipwise.data.tokens import encoder_of
from skipwise.errors import ConfigError
from skipwise.evals.thinking import opens_thought, thinking_switches, without_thought


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One prompt as text.

    Attributes:
        request: instruction, context and question.
        answer_prefix: the words that the answer continues; a chat model's turn begins with them.
        references: what the answer must contain.
        details: JSON values that join the sample.
    """

    request: str
    answer_prefix: str
    references: list[str]
    details: dict[str, Any] = field(default_factory=dict)


class EncodedDraft(NamedTuple):
    """A draft with its tokens."""

    draft: Draft
    prompt_ids: list[int]


class PromptEncoder:
    """Tokenizes drafts; control tokens that a draft spells are read as text.

    Args:
        tokenizer: a tokenizer of the transformers library.
        bos_ids: token ids that precede every input without a chat template: one or none.
        chat: whether to put the request into a user's turn of the tokenizer's chat template. The answer prefix follows
            the assistant's header, after an empty thought if the template opens one.
        thinks: whether a chat model may think; it then begins its answer itself.
        gap: what stands between request and answer prefix without a chat template.

    Raises:
        ConfigError: a chat is asked for and the tokenizer has no template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        bos_ids: Sequence[int] = (),
        chat: bool = False,
        thinks: bool = False,
        gap: str = " ",
    ) -> None:
        if chat and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "chat is true but the tokenizer has no chat template: set chat to false", page="unsuitable-tokenizer"
            )
        self._tokenizer = tokenizer
        self._bos_ids = list(bos_ids)
        self._chat, self._thinks, self._gap = chat, thinks, gap

    def encode(self, draft: Draft) -> EncodedDraft:
        """The draft with its tokens."""
        if not self._chat:
            return EncodedDraft(draft, self._bos_ids + self._plain(f"{draft.request}{self._gap}{draft.answer_prefix}"))
        messages, encoder = [{"role": "user", "content": draft.request}], encoder_of(self._tokenizer)
        switches: Any = thinking_switches(self._tokenizer, on=self._thinks)
        # The template writes the beginning-of-sequence token.
        if self._thinks:
            return EncodedDraft(draft, encoder.encode_chat(messages, **switches))
        ids = encoder.encode_chat(messages, finish=without_thought, ending=draft.answer_prefix, **switches)
        return EncodedDraft(draft, ids)

    @property
    def opens_thought(self) -> bool:
        """Whether prompts end at the beginning of a thought."""
        if not self._thinks:
            return False
        switches: Any = thinking_switches(self._tokenizer, on=True)
        how = {"tokenize": False, "add_generation_prompt": True, **switches}
        return opens_thought(self._tokenizer.apply_chat_template([{"role": "user", "content": ""}], **how))

    def answer_ids(self, draft: Draft, max_tokens: int) -> list[int]:
        """Tokens of the first reference right after the prompt; empty if they are too many or do not decode to it."""
        together = self._plain(f"{draft.answer_prefix} {draft.references[0]}")
        answer = together[len(self._plain(draft.answer_prefix)) :]
        # Some of the answer is missing if the tokenizer merges its beginning with the prefix's end.
        proves = draft.references[0] in self._tokenizer.decode(answer)
        return answer if proves and len(answer) <= max_tokens else []

    def _plain(self, text: str) -> list[int]:
        return encoder_of(self._tokenizer).encode(text)
