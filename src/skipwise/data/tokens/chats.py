"""Tokenizing conversations: rendered by the model's chat template, with labels on what the assistant says.

The labels of a turn are found in one of two ways:

- A template may mark them, by `{% generation %}`.
- Otherwise the beginnings of the conversation are rendered, too. What the conversation up to and with the turn adds to
  the conversation before it with the generation prompt is what the model writes. White space that the template puts
  behind the turn's last control token is left out: generation ends with that token.

So the end token of a turn is a label, and the generation prompt is not. What the assistant says before anybody else is
context: nothing asks for it.

A beginning must be rendered as in the whole. Some templates render a turn in another way once it is past; Qwen3's, for
one, drops what was thought before earlier answers. A model generates such a turn as the last one, so it is learned as
the last one: from another rendering, which ends with it. A document then has several renderings, one behind the other,
like short conversations that are joined; each turn is a label in one of them.

Some templates write the date of today. Token files keep that of the day when they were made.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from skipwise.data.documents import Document, split_point
from skipwise.data.formats import UnreadableError
from skipwise.data.tokens.documents import Encoder, Piece
from skipwise.data.tokens.engines import Reading
from skipwise.data.tokens.texts import TextEncoder
from skipwise.data.turns import flagged
from skipwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("skipwise")

# The library keeps the marks of a template in the compiled template itself, which all threads share.
_RENDERING = Lock()
# Part of the fingerprint; raise it with any change of what conversations become.
_VERSION = 1

_NO_TEMPLATE = (
    "the documents are conversations, and the tokenizer has no chat template to write them by; give an instruct model, "
    "put a chat_template.jinja beside the model's tokenizer.json (for the model embedded, in the FOLDER of: "
    "skipwise export embedded --to hf --out FOLDER), or write the conversations as texts in the form "
    "that the model knows, one in the field text of each record"
)
_REPEATED = (
    "the chat template writes a turn in another way once others follow, as by leaving out its thinking; such a "
    "conversation is written once for each such turn, as the model sees it when it answers"
)
_TOOLS_LEFT_OUT = "conversations have tools that the chat template does not write; the model is not shown them"


class Rendering(NamedTuple):
    """A conversation, or its beginning, as the template writes it.

    Attributes:
        text: for `TextEncoder.encode_with_offsets`.
        begins: where turns begin in it, in characters.
        labels: begin and end of each stretch that is learned, in characters.
    """

    text: str
    begins: list[int]
    labels: list[tuple[int, int]]


class ConversationEncoder(Encoder):
    """Tokenizes conversations (`data.conversations`) as an `Encoder` does texts; the ids carry flags (`data.turns`).

    Conversations that the template rejects, or of which the labels cannot be told, are refused one by one.

    Args:
        tokenizer: a fast one with a chat template.
        reading: `tokens` if control tokens spelled in messages are meant as tokens.

    Raises:
        DataError: the tokenizer has no chat template.
    """

    has_turns: ClassVar[bool] = True

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", reading: Reading = "text") -> None:
        require_chat_template(tokenizer)
        super().__init__(tokenizer, reading)
        # A joined conversation begins with the tokens of its own template.
        self.separator_id = None
        self.dtype = np.dtype(np.uint32)
        depends_on = json.dumps([_VERSION, tokenizer.chat_template, self.fingerprint])
        self.fingerprint = hashlib.sha256(depends_on.encode()).hexdigest()
        self._said = set[str]()

    def pieces(self, batch: list[Document]) -> list[Piece | UnreadableError]:
        """One piece per conversation, or why it is refused."""
        pieces = list[Piece | UnreadableError]()
        for document in batch:
            self._count(len(document.text))
            ids = np.zeros(0, self.dtype)
            try:
                if document.text.strip():
                    ids = self._encoded(json.loads(document.text))
            except DataError as error:
                cure = "fix or remove the conversation"
                pieces.append(UnreadableError("conversation", document.name, str(error), cure))
            else:
                pieces.append(Piece(document.name, ids, split_point(document.identity)))
        return pieces

    def why_not(self, document: Document) -> UnreadableError | None:
        """Why a conversation is refused; None if it is not."""
        (piece,) = self.pieces([document])
        return piece if isinstance(piece, UnreadableError) else None

    def _encoded(self, conversation: Mapping[str, Any]) -> np.ndarray:
        messages = conversation["messages"]
        with _RENDERING:
            found = renderings(self._texts, messages, conversation.get("tools"))
        self._warn_of_control_tokens([message["content"] for message in messages if message["role"] != "assistant"])
        if len(found) > 1:
            self._warn_once(_REPEATED)
        if any(name not in found[-1].text for name in _names_of(conversation.get("tools") or [])):
            self._warn_once(_TOOLS_LEFT_OUT)
        return np.concatenate([_entries(self._texts, rendering) for rendering in found])

    def _warn_once(self, line: str) -> None:
        with self._lock:
            is_said = line in self._said
            self._said.add(line)
        if not is_said:
            logger.warning(line)


def require_chat_template(tokenizer: Any) -> None:
    """Raises DataError if a tokenizer has no template to write conversations by."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(_NO_TEMPLATE, page="unusable-conversations")


def renderings(encoder: TextEncoder, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> list[Rendering]:
    """Renders a conversation so that each turn of the assistant is a label once.

    Args:
        encoder: of a tokenizer with a chat template.
        messages: of the conversation. A turn of the assistant whose `weight` is 0 is not learned, as in OpenAI's form.
        tools: for the template.

    Returns:
        One rendering of the whole; several, of growing beginnings, where the template writes past turns differently.

    Raises:
        DataError: the template rejects the conversation, or does not tell what the assistant writes. The message is a
            predicate whose subject is the conversation.
    """
    chat = _Chat(encoder, messages, tools)
    turns = (i for i, message in enumerate(messages) if message["role"] == "assistant" and i)
    waiting = {i for i in turns if messages[i].get("weight") != 0}
    if not waiting:
        raise DataError("has no turn of the assistant to learn: none follows another message and has a weight above 0")
    found = list[Rendering]()
    while waiting:
        last = max(waiting)
        rendering, learned = chat.rendering(last + 1, waiting)
        if last not in learned:
            raise DataError(chat.why_not(last))
        waiting -= learned
        found.append(rendering)
    return found[::-1]


class _Chat:
    """A conversation whose beginnings are rendered on demand."""

    def __init__(self, encoder: TextEncoder, messages: Sequence[Mapping[str, Any]], tools: Any) -> None:
        self._encoder, self._messages = encoder, encoder.marked(messages)
        self._tools = encoder.marked(tools) if tools else None
        self._known: dict[tuple[int, bool], str | None] = {}

    def rendering(self, number: int, waiting: set[int]) -> tuple[Rendering, set[int]]:
        """The first messages, with those turns as labels that are waiting and rendered as when they are the last.

        Returns:
            The rendering, and the indices of the messages that are labels in it.
        """
        text, spans = self._whole(number)
        begins = {0} | {len(before) for i in range(1, number) if (before := self._is_beginning(text, i)) is not None}
        turns = [i for i, message in enumerate(self._messages[:number]) if message["role"] == "assistant"]
        labels = dict[int, tuple[int, int]]()
        if spans is not None and len(spans) == len(turns):
            stable = (i for i in turns if i == number - 1 or self._is_beginning(text, i + 1) is not None)
            labels = {i: spans[turns.index(i)] for i in stable if i in waiting}
        elif spans:
            # The template joins or divides turns, so it alone knows; all are learned here.
            return self._finished(text, sorted(begins), spans), waiting & {*turns}
        elif spans is None:
            labels = {i: span for i in turns if i in waiting and (span := self._span(text, i)) is not None}
        for i, (begin, end) in labels.items():
            if any(name not in text[begin:end] for name in _names_of(self._messages[i].get("tool_calls") or [])):
                raise DataError(f"has a tool call in message {i + 1} that the chat template does not write")
        return self._finished(text, sorted(begins), [labels[i] for i in sorted(labels)]), {*labels}

    def why_not(self, turn: int) -> str:
        """Why a turn is no label where it is the last, as a predicate."""
        if self._encoder.marks_turns:
            return f"has an assistant's turn that the chat template does not mark by generation (message {turn + 1})"
        return (
            f"has an assistant's turn (message {turn + 1}) that the chat template does not begin by its own generation "
            "prompt, so that what the model is to write cannot be told"
        )

    def _whole(self, number: int) -> tuple[str, list[tuple[int, int]] | None]:
        """The first messages as text, and the stretches that the template marks; None where it marks none."""
        try:
            if self._encoder.marks_turns:
                return self._encoder.write_turns(self._messages[:number], tools=self._tools)
            text = self._known[number, False] = self._rendered(number, prompt=False)
            return text, None
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"is rejected by the model's chat template ({reason})") from None

    def _span(self, text: str, turn: int) -> tuple[int, int] | None:
        """What the model writes in a turn; None where a beginning is rendered in another way than in the text."""
        before, through = self._beginning(turn, prompt=True), self._is_beginning(text, turn + 1)
        if before is None or through is None or not through.startswith(before):
            return None
        said = through[len(before) :]
        end = self._encoder.after_last_control_token(said)
        return len(before), len(before) + (end if end and not said[end:].strip() else len(said))

    def _is_beginning(self, text: str, number: int) -> str | None:
        """The first messages if the text begins as they do."""
        found = self._beginning(number)
        return found if found is not None and text.startswith(found) else None

    def _beginning(self, number: int, *, prompt: bool = False) -> str | None:
        """The first messages, or those and the generation prompt; None where the template rejects them."""
        key = number, prompt
        if key not in self._known:
            try:
                self._known[key] = self._rendered(number, prompt=prompt)
            except Exception:  # a template may raise anything
                self._known[key] = None
        return self._known[key]

    def _rendered(self, number: int, *, prompt: bool) -> str:
        return self._encoder.write(self._messages[:number], tools=self._tools, add_generation_prompt=prompt)

    def _finished(self, text: str, begins: list[int], labels: list[tuple[int, int]]) -> Rendering:
        """Of what the template wrote, with all places in it."""
        ends = [place for label in labels for place in label]
        text, places = self._encoder.resolved(text, [*begins, *ends])
        begins, ends = places[: len(begins)], places[len(begins) :]
        return Rendering(text, begins, list(zip(ends[::2], ends[1::2], strict=True)))


def _names_of(tools: Sequence[Any]) -> list[str]:
    """Names of the functions of tools or tool calls."""
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)]
    return [str(function["name"]) for function in functions if isinstance(function, Mapping) and "name" in function]


def _entries(encoder: TextEncoder, rendering: Rendering) -> np.ndarray:
    """Token ids with flags, 1-D uint32. A token belongs to the turn in which its first character is."""
    ids, offsets = encoder.encode_with_offsets(rendering.text)
    starts = np.array([begin for begin, _ in offsets], np.int64)
    is_label = np.zeros(len(ids), bool)
    for begin, end in rendering.labels:
        is_label[np.searchsorted(starts, begin) : np.searchsorted(starts, end)] = True
    begins_turn = np.zeros(len(ids), bool)
    places = np.searchsorted(starts, rendering.begins)
    begins_turn[places[places < len(ids)]] = True
    return flagged(np.array(ids, np.uint32), is_label, begins_turn)
