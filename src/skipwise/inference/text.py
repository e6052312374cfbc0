"""Text of tokens as they come: no half characters, and nothing that may yet turn out to be a stop text."""

from collections.abc import Sequence
from typing import Any

_UNKNOWN = "\ufffd"
"""What tokenizers write for bytes that are not a character, or not yet."""


class TextStream:
    """Turns tokens into text one by one.

    Not the tokenizers library's `DecodeStream`: that raises where a byte spoils characters before it, as bytes of
    SentencePiece can, holds back half a character at the end, and takes no tokenizer without a Rust engine.

    Args:

    Attributes:
        stopped: whether a stop text came; nothing comes after it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        # A token's text may depend on those before it. It is what the text of the tokens from `_begin` on grows by when
        # the token is appended; the text up to `_read` was given out.
        self._begin = self._read = 0
        self._waiting = ""

    def add(self, token_id: int) -> str:
        """The text that is final with this token."""
        self._ids.append(token_id)
        before, text = self._decoded(self._read), self._decoded(len(self._ids))
        if text.endswith(_UNKNOWN) or len(text) <= len(before):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return self._settle(text[len(before) :])

    def finish(self) -> str:
        """What is left when no further token comes."""
        if self.stopped:
            return ""
        rest = self._decoded(len(self._ids))[len(self._decoded(self._read)) :]
        self._begin = self._read = len(self._ids)
        settled = self._settle(rest)
        settled, self._waiting = settled + self._waiting, ""
        return settled

    def _decoded(self, end: int) -> str:
        return self._tokenizer.decode(self._ids[self._begin : end], skip_special_tokens=True)

    def _settle(self, text: str) -> str:
        if self.stopped:
            return ""
        self._waiting += text
        places = [place for stop in self._stop if (place := self._waiting.find(stop)) >= 0]
        if places:
            self.stopped = True
            settled, self._waiting = self._waiting[: min(places)], ""
            return settled
        held = max((_begun(self._waiting, stop) for stop in self._stop), default=0)
        cut = len(self._waiting) - held
        settled, self._waiting = self._waiting[:cut], self._waiting[cut:]
        return settled


def _begun(text: str, stop: str) -> int:
    """Characters at the end of `text` that may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
