"""A tokenizer for tests of prompts: pieces of at most four letters, much like a small BPE, without a file."""

import re

import numpy as np

_PIECE = re.compile(r" ?[A-Za-z]{1,4}| ?[0-9]| ?[^\sA-Za-z0-9]|\s")

PROSE = (
    "The keeper of the lighthouse wrote down the weather every evening. Nobody had asked him to! In winter the pages "
    'were short, and in summer they told of ships. "Who will read all this?" asked a visitor. He shrugged. Years later '
    "the notes were worth more than the lamp, for no one else had measured the wind on that coast.\n\n"
)


class PieceTokenizer:
    """Gives each new piece the next id, so that decoding is exact."""

    bos_token_id = 0
    chat_template = None

    def __init__(self) -> None:
        self._pieces = ["<s>"]
        self._ids: dict[str, int] = {}

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = [self._id(piece) for piece in _PIECE.findall(text)]
        return [0, *ids] if add_special_tokens else ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self._pieces[token] for token in ids)

    def _id(self, piece: str) -> int:
        if piece not in self._ids:
            self._ids[piece] = len(self._pieces)
            self._pieces.append(piece)
        return self._ids[piece]


class ChatTokenizer(PieceTokenizer):
    """The same with a chat template."""

    chat_template = "a template"

    def apply_chat_template(self, messages: list[dict], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        assert add_generation_prompt
        return "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in messages) + "<assistant>"


def prose_documents(tokenizer: PieceTokenizer) -> list[np.ndarray]:
    """Two documents, the second of which begins with the beginning-of-sequence token, as in a store."""
    return [
        np.array(tokenizer.encode(PROSE * 3, add_special_tokens=False)),
        np.array(tokenizer.encode("A second document. " + PROSE, add_special_tokens=True)),
    ]
