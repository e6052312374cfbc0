"""Tokenizing one text, or a chat by its template."""

import re
import secrets
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from skipwise.data.tokens.engines import ControlTokens, Reading, any_of, control_tokens, engine_of, with_hidden_tokens
from skipwise.data.tokens.long_texts import PIECE, encode_in_pieces
from skipwise.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Chat template for tokenizers without one: `Role: content`, separated by blank lines."""


class TextEncoder:
    """Tokenizes texts and chats; control tokens spelled in a text are read as text. Thread-safe.

    Args:
        tokenizer: a fast one of the transformers library.
        chat_template: used instead of the tokenizer's own; without either, `PLAIN_TEMPLATE`.
        reading: `tokens` if control tokens spelled in texts are meant as tokens.
        plain: `engine_of(tokenizer)`, if at hand.

    Attributes:
        engine: a copy of the tokenizer's engine in which control tokens have unguessable names.
        prefix: ids that the tokenizer puts before every text.
        closing: ids that it puts after every text.
        control_tokens: of the tokenizer and the template.
        has_template: whether the template is not `PLAIN_TEMPLATE`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str | None = None,
        reading: Reading = "text",
        plain: "Tokenizer | None" = None,
    ) -> None:
        self._tokenizer = tokenizer
        own = bool(getattr(tokenizer, "chat_template", None))
        self.has_template = own or chat_template is not None
        self._template = chat_template or (None if own else PLAIN_TEMPLATE)
        plain = plain or engine_of(tokenizer)
        bare = plain.encode("a", add_special_tokens=False).ids
        full = plain.encode("a").ids
        place = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        self.prefix, self.closing = full[:place], full[place + len(bare) :]
        self.control_tokens = control_tokens(tokenizer, chat_template)
        self.engine, self._names = with_hidden_tokens(plain, self.control_tokens.all if reading == "text" else ())
        normalizer, added = self.engine.normalizer, self.engine.get_added_tokens_decoder()
        alone = {token.content for token in added.values() if token.single_word}
        self._fragile = {
            name: token
            for token, name in self._names.items()
            if name in alone or (normalizer and normalizer.normalize_str(name) != name)
        }
        # Other models depend on the whole word: whether WordPiece knows it, how Unigram segments it.
        self._cut_anywhere = type(self.engine.model).__name__ == "BPE"
        self._marks = _Marks(self.control_tokens)
        self._written_tokens = any_of(self.control_tokens.all)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text, in bounded memory; `add_special_tokens` adds `prefix` and `closing`."""
        ids = self.pieces(text).tolist() if is_long(text) else self._ids(text)
        return self.prefix + ids + self.closing if add_special_tokens else ids

    def pieces(self, text: str, note: Callable[[int], None] = lambda characters: None) -> "array[int]":
        """Token ids of a text that `is_long`, 32 bits each; `note` as in `encode_in_pieces`."""
        return encode_in_pieces(text, self._ids, anywhere=self._cut_anywhere, note=note, size=PIECE)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> list[int]:
        """Token ids of a chat and of the header of the next answer; arguments as in `render_chat`."""
        return self.encode_rendered(self.render_chat(messages, **how))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        finish: Callable[[str], str] = str,
        ending: str = "",
        **how: Any,
    ) -> str:
        """Renders a chat as text for `encode_rendered`.

        The ids equal those of the library's `apply_chat_template` if no message spells a control token. A control token
        spelled in a message is read as text; only those of the template itself are tokens. In assistant messages this
        holds only for special tokens: other tokens that the template writes, such as `</think>`, came from the model,
        and templates look for them.

        Args:
            messages: as the library takes them.
            finish: edits the rendered text, for example to close a `<think>` block.
            ending: text to append after that.
            how: variables of the template.

        Raises:
            Exception: whatever the template raises for messages that it rejects.
        """
        if how.get("tools"):
            how["tools"] = self.marked(how["tools"])
        written = self.write(self.marked(messages), **{"add_generation_prompt": True, **how})
        written = finish(written)
        return self.resolved(written + self._marks.put(ending), [])[0]

    @property
    def marks_turns(self) -> bool:
        """Whether the template marks what the assistant has written, by `{% generation %}`."""
        template = self._template or self._tokenizer.chat_template
        templates = template.values() if isinstance(template, Mapping) else [template]
        return any(_GENERATION.search(each) for each in templates)

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Messages or tools whose spelled control tokens are marked, for `write`."""
        return [self._marks.put(message, is_the_models=message.get("role") == "assistant") for message in messages]

    def write(self, marked: Sequence[Any], **how: Any) -> str:
        """What the template writes of marked messages, for `resolved`; equal beginnings stay equal."""
        written: Any = self._tokenizer.apply_chat_template(
            list(marked), chat_template=self._template, tokenize=False, **how
        )
        return written

    def write_turns(self, marked: Sequence[Any], *, tools: Any = None) -> tuple[str, list[tuple[int, int]]]:
        """`write`, and begin and end of what the template marks by `{% generation %}`, in characters."""
        from transformers.utils.chat_template_utils import render_jinja_template

        texts: Any
        spans: Any
        texts, spans = render_jinja_template(
            conversations=[list(marked)],
            tools=tools,
            chat_template=self._tokenizer.get_chat_template(self._template, tools),
            return_assistant_tokens_mask=True,
            add_generation_prompt=False,
            **self._tokenizer.special_tokens_map,
        )
        return texts[0], spans[0]

    def resolved(self, text: str, places: Sequence[int]) -> tuple[str, list[int]]:
        """What a template wrote without marks and with the names of control tokens; and where places of it are now."""
        return self._with_names_found(*self._marks.resolve(text, self._names, places))

    def after_last_control_token(self, written: str) -> int:
        """Where the last control token that the template itself wrote ends; 0 if there is none."""
        return max((found.end() for found in self._written_tokens.finditer(written)), default=0)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a rendered chat, and the characters of the text that each stands for."""
        encoded = self._encodings("encode_batch", text)
        return encoded.ids, encoded.offsets

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of the result of `render_chat`."""
        # The model's own template writes all special tokens itself.
        return self.encode(text, add_special_tokens=not self.has_template)

    def _with_names_found(self, text: str, places: list[int]) -> tuple[str, list[int]]:
        """Replaces the names of tokens that the engine would not recognise in their place by the tokens themselves.

        The engine recognises some tokens only as single words. It looks for others in normalized text; if the
        normalizer puts a space before each text, as Llama 2's does, it recognises these only after a space.
        """
        if not any(name in text for name in self._fragile):
            return text, places
        encoded = self._encodings("encode_batch", text)
        wanted = set(map(self.engine.token_to_id, self._fragile))
        ends = {end for number, (_, end) in zip(encoded.ids, encoded.offsets, strict=True) if number in wanted}
        return _substituted(
            any_of(self._fragile),
            lambda found: found[0] if found.end() in ends else self._fragile[found[0]],
            text,
            places,
        )

    def _ids(self, text: str) -> list[int]:
        return self._encodings("encode_batch_fast", text).ids

    def _encodings(self, how: str, text: str) -> Any:
        # A batch of one, since only the batch methods release the GIL.
        try:
            return getattr(self.engine, how)([text], add_special_tokens=False)[0]
        except TypeError as error:
            raise DataError(
                "a text has a lone surrogate (\\ud800 to \\udfff), which is not a character; remove it"
            ) from error


class _Marks:
    """Marks control tokens spelled in messages while a template processes them.

    A mark is a character after the first character of a spelled token. So a template neither finds the token nor
    recreates it by slicing, joining, stripping or changing the case of texts. The mark is drawn from 65,533 private-use
    characters.

    Args:
        tokens: control tokens of a tokenizer.
    """

    def __init__(self, tokens: ControlTokens) -> None:
        self._mark = mark = chr(0x100000 + secrets.randbelow(0xFFFD))
        self._any, self._special = (
            # A token may begin within another, and one that begins at a text's end may continue in the template's text.
            (re.compile(f"{mark}|(?={any_of(wanted).pattern}).", re.DOTALL), _beginnings(wanted))
            for wanted in (tokens.all, tokens.special)
        )
        added = tokens.all | tokens.ordinary
        # The mark of a one-character token follows it.
        long, letters = (any_of(token for token in added if (len(token) > 1) == is_long).pattern for is_long in (1, 0))
        self._all = re.compile(f"{mark}(?P<own>{mark}?)|(?P<written>{long}|{letters}(?!{mark}))")

    def put(self, value: Any, *, is_the_models: bool = False) -> Any:
        """Marks the control tokens in all strings of a value; in the model's own messages only special tokens."""
        if isinstance(value, str):
            pattern, beginnings = self._special if is_the_models else self._any
            most = min(len(value), max(map(len, beginnings), default=0))
            places = {found.end() for found in pattern.finditer(value)}
            places |= {len(value) - n + 1 for n in range(1, most + 1) if value[-n:] in beginnings}
            cuts = [0, *sorted(places), len(value)]
            return self._mark.join(value[begin:end] for begin, end in pairwise(cuts)) if places else value
        if isinstance(value, Mapping):
            return {name: self.put(each, is_the_models=is_the_models) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.put(each, is_the_models=is_the_models) for each in value]
        return value

    def resolve(self, text: str, names: Mapping[str, str], places: Sequence[int]) -> tuple[str, list[int]]:
        """Removes the marks, and replaces unmarked control tokens by their names; also returns where places are now."""

        def resolved(found: re.Match[str]) -> str:
            written = found["written"]
            return names.get(written, written) if written else found["own"]

        return _substituted(self._all, resolved, text, places)


def _substituted(
    pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str], text: str, places: Sequence[int]
) -> tuple[str, list[int]]:
    """`pattern.sub(replacement, text)`, and where places of the text are in the result."""
    ends, grown = list[int](), list[int]()

    def noted(found: re.Match[str]) -> str:
        new = replacement(found)
        if places:
            ends.append(found.end())
            grown.append(len(new) - len(found[0]))
        return new

    result = pattern.sub(noted, text)
    total = [0, *accumulate(grown)]
    return result, [place + total[bisect_right(ends, place)] for place in places]


def _beginnings(tokens: Collection[str]) -> frozenset[str]:
    """All non-empty proper prefixes of the tokens."""
    return frozenset(token[:end] for token in tokens for end in range(1, len(token)))


class _OtherEncoder:
    """Encoder for tokenizers that are not fast, as far as they can tell text from control tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._how = {"split_special_tokens": True} if hasattr(tokenizer, "split_special_tokens") else {}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """See `TextEncoder.encode`."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, **self._how))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        finish: Callable[[str], str] = str,
        ending: str = "",
        **how: Any,
    ) -> list[int]:
        """See `TextEncoder.encode_chat`; only for chats that spell no control token.

        Raises:
            DataError: a message spells a control token.
        """
        spelled = any_of(getattr(self._tokenizer, "all_special_tokens", ()))
        found = next(filter(None, (spelled.search(str(message.get("content"))) for message in messages)), None)
        if found:
            raise DataError(
                f"a message spells the control token {found[0]!r}, and the tokenizer is a "
                f"{type(self._tokenizer).__name__}, which cannot tell it from the token itself; write it in "
                "another way, or give the model a tokenizer.json",
                page="unsuitable-tokenizer",
            )
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, **{"add_generation_prompt": True, **how}
        )
        return list(self._tokenizer.encode(finish(text) + ending, add_special_tokens=False))


def is_long(text: str) -> bool:
    """Whether a text is tokenized in pieces."""
    return len(text) > 2 * PIECE


def encoder_of(tokenizer: Any) -> TextEncoder | _OtherEncoder:
    """The encoder of any tokenizer, which reads spelled control tokens as text; cached for fast tokenizers."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return _OtherEncoder(tokenizer)
    return _of_fast(tokenizer, len(tokenizer), str(getattr(tokenizer, "chat_template", None)))


@lru_cache(maxsize=2)
def _of_fast(tokenizer: Any, _tokens: int, _template: str) -> TextEncoder:
    # The key includes what other code may change on a tokenizer: its number of tokens and its template.
    return TextEncoder(tokenizer)
