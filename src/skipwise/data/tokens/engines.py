"""Engines of fast tokenizers: copies of a tokenizer's own, and copies in which no text can spell a control token."""

import json
import re
import secrets
import string
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from skipwise.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile("<0x[0-9A-F]{2}>")

# Files that the transformers library converts to a fast tokenizer.
_CONVERTIBLE = ("tokenizer.json", "tokenizer.model", "tekken.json")

Reading = Literal["text", "tokens"]
"""How a control token spelled in a text is read: as text, or as the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTokens:
    """The added tokens of a tokenizer, by whether they control the model.

    Attributes:
        special: special tokens of the tokenizer, and its end, begin and other named tokens.
        written: other tokens that a chat template writes, such as `<think>`; the model generates them, too.
        ordinary: all other added tokens, which are text.
    """

    special: frozenset[str]
    written: frozenset[str]
    ordinary: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """The control tokens: special and written ones."""
        return self.special | self.written


def control_tokens(tokenizer: Any, chat_template: str | None = None) -> ControlTokens:
    """The control tokens of a fast tokenizer.

    Args:
        tokenizer: of the transformers library.
        chat_template: used instead of the tokenizer's own.

    Source: `sanitize_control_tokens` of the transformers library follows the same rule. The tokenizer setting
        `chat_control_tokens` names the tokens of templates that assemble them from pieces.
    """
    added = {token.content: token.special for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()}
    named = {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    # White space and single bytes are text, whatever their tokens are called.
    added_as_text = {content for content in added if not content.strip() or _BYTE.fullmatch(content)}
    special = {content for content, is_special in added.items() if is_special or content in named} - added_as_text
    declared = getattr(tokenizer, "chat_control_tokens", None)
    template = chat_template or getattr(tokenizer, "chat_template", None) or ""
    template = "\0".join(template.values()) if isinstance(template, Mapping) else str(template)
    rest = added.keys() - special - added_as_text
    written = rest & set(declared) if declared is not None else {content for content in rest if content in template}
    ordinary = added.keys() - special - written
    return ControlTokens(special=frozenset(special), written=frozenset(written), ordinary=frozenset(ordinary))


def require_fast(tokenizer: Any) -> None:
    """Requires a tokenizer that runs in the tokenizers library, since only that tokenizes in parallel threads.

    Raises:
        DataError: with the command that converts its files to a fast tokenizer, if that is possible.
    """
    if getattr(tokenizer, "is_fast", False):  # Mistral's own tokenizer has no such attribute
        return
    folder = str(getattr(tokenizer, "name_or_path", ""))
    found = [name for name in _CONVERTIBLE if folder and (Path(folder) / name).is_file()]
    cure = "it has no files to convert to a fast one: give a checkpoint that has a tokenizer.json"
    if found:
        cure = (
            f'convert its {found[0]} to a fast one: python -c "from transformers import TokenizersBackend as T; '
            f"T.from_pretrained({folder!r}).save_pretrained('NEW')\", compare the ids of some text, and replace the "
            "checkpoint's own tokenizer files by those of NEW"
        )
    raise DataError(
        f"the tokenizer is a slow {type(tokenizer).__name__}, and documents need a fast one; {cure}",
        page="unsuitable-tokenizer",
    )


def engine_of(tokenizer: Any) -> "Tokenizer":
    """A copy of a tokenizer's engine, without the truncation and padding that other code may have set."""
    from tokenizers import Tokenizer

    engine = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    engine.no_truncation()
    engine.no_padding()
    return engine


def with_hidden_tokens(engine: "Tokenizer", hidden: Collection[str]) -> tuple["Tokenizer", dict[str, str]]:
    """A copy of an engine in which some tokens are renamed to unguessable names; and these names, by token.

    A text that spells such a token gets the ids of its characters, even if the engine's model would produce the token
    itself (a Unigram piece, or the result of merges), where the engine's `encode_special_tokens` does not help. Code
    that means the token writes its new name. Token ids do not change.
    """
    from tokenizers import Tokenizer

    described = json.loads(engine.to_str())
    names = dict(zip(sorted(hidden), unguessable(len(hidden)), strict=True))
    for token in described["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = described["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = _without(model["merges"], names, model.get("continuing_subword_prefix") or "")
    return Tokenizer.from_str(json.dumps(described)), names


def _without(merges: list[Any], names: Mapping[str, str], prefix: str) -> list[Any]:
    """The merges that neither use nor produce a renamed token."""

    def is_kept(merge: Any) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return not {left, right, left + right.removeprefix(prefix)} & names.keys()

    return [merge for merge in merges if is_kept(merge)]


def unguessable(number: int) -> list[str]:
    """Random words that occur in no text; in lower-case letters and digits, which normalizers leave alone."""
    key = "".join(secrets.choice(string.ascii_lowercase) for _ in range(24))
    return [f"{key}{place:06d}" for place in range(number)]


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds tokens as engines do: the leftmost, and the longest of those.

    It is built as a prefix tree, so that ten tokens or, as in Gemma 3, six thousand are searched for equally fast.
    """
    tree: dict[str, Any] = {}
    for token in filter(None, tokens):
        node = tree
        for letter in token:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(_pattern(tree) if tree else "(?!)")


def _pattern(node: Mapping[str, Any]) -> str:
    """The pattern of a node of the prefix tree; the key "" marks the end of a token."""
    further = "|".join(re.escape(letter) + _pattern(rest) for letter, rest in sorted(node.items()) if letter)
    if "" in node:
        return further and f"(?:{further})?"
    return f"(?:{further})" if len(node) > 1 else further
