"""Write tokenizers to GGUF files: tokens, token types, merges or scores, and the name of the pre-tokenizer.

Two kinds are supported: byte-level BPE (`gpt2` in GGUF) and SentencePiece BPE (`llama`). GGUF does not store the
regular expressions that byte-level BPE splits text with, but a name that llama.cpp knows. The name is found by trying
the known names: it is the first that splits test texts like the tokenizer does. The texts tell all names apart.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, pre_tokenizers

from skipwise.errors import UnsupportedModelError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = (rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*")
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"


class _Splits(NamedTuple):
    """How llama.cpp splits text for a name. Each expression splits the pieces that the previous one leaves."""

    expressions: tuple[str, ...]
    ignores_merges: bool = False


# Names that llama.cpp knows, in the order in which they are tried. If merges are ignored, pieces that are in the
# vocabulary are not split further, so this property must match too.
SPLITS = {
    "gpt-2": _Splits((_GPT2,)),
    "smollm": _Splits((_DIGIT, _GPT2)),
    "llama-bpe": _Splits((_LLAMA3,), ignores_merges=True),
    "smaug-bpe": _Splits((_LLAMA3,)),
    "qwen2": _Splits((rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",)),
    "qwen35": _Splits(
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "tekken": _Splits((rf"{_CASES[0]}|{_CASES[1]}|\p{{N}}|{_REST_SLASH}",), ignores_merges=True),
    "gpt-4o": _Splits(
        (
            rf"{_CASES[0]}{_CONTRACTIONS}?|{_CASES[1]}{_CONTRACTIONS}?"
            rf"|\p{{N}}{{1,3}}|{_REST_SLASH}",
        )
    ),
}

TEXTS = (
    "Hello, wörld! 12345 we're THEY'LL don't  two  spaces\n\n\tdef f(x):\n\t\treturn x  # 3.14/2 ",
    " leading space, HTTPServer camelCase naïve Ångström\r\n  indented    four\n\n\n",
    "数字１２３と漢字、日本語。 नमस्ते दुनिया 🚀🙂 «quotes» --- ... !!! ?? 1000000 99 7/8\n/path//x ",
    "I'VE I've it'S  \t \n x\u00a0y ''quoted'' 'd 'D a1b22c333d4444",
)
"""Texts that tokenizers are compared on. They contain contractions, digits, letter cases, combining marks, spaces and
line ends."""


class GgufTokenizer(NamedTuple):
    """A tokenizer in GGUF's form.

    Attributes:
        model: `gpt2` or `llama`.
        pre: name of the pre-tokenizer.
        tokens: tokens by id, as many as the model has embeddings.
        types: type of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
        merges: pairs separated by a space, in order; None for SentencePiece.
        scores: score of each token, where higher scores merge first; None for byte-level BPE.
        entries: further metadata, by key without `tokenizer.ggml.`.
        chat_template: the chat template; None if there is none.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    entries: dict[str, Any]
    chat_template: str | None


def to_gguf(tokenizer: Any, vocab_size: int) -> GgufTokenizer:
    """Translates a tokenizer of the transformers library to GGUF's form.

    Args:
        tokenizer: a fast tokenizer.
        vocab_size: number of rows of the model's embeddings; ids without a token become unused tokens.

    Raises:
        UnsupportedModelError: the tokenizer's kind is not supported, or no known name splits text like it does.
    """
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModelError(
            f"tokenizer is a {type(tokenizer).__name__} without a tokenizer.json; save it as a fast tokenizer first",
            page="engine-cannot-compute",
        )
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise UnsupportedModelError(
            f"tokenizer is of kind {model['type']}; GGUF files support byte-level BPE and SentencePiece BPE",
            page="engine-cannot-compute",
        )
    if not model["merges"]:
        raise UnsupportedModelError(
            "tokenizer has no merges, and llama.cpp needs them; export --to hf", page="engine-cannot-compute"
        )
    sentence_piece = bool(model.get("byte_fallback"))
    added = {entry["id"]: entry for entry in described["added_tokens"]}
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(by_id) >= vocab_size:
        raise UnsupportedModelError(
            f"tokenizer has ids up to {max(by_id)}, but the model has {vocab_size} embeddings; they do not match",
            page="engine-cannot-compute",
        )
    tokens, types = [], []
    for index in range(vocab_size):
        token, kind = by_id.get(index, f"[PAD{index}]"), 1 if index in by_id else 5
        if index in added:
            kind = 3 if added[index]["special"] else 4
        elif sentence_piece and token == model.get("unk_token"):
            kind = 2
        elif sentence_piece and len(token) == 6 and token.startswith("<0x"):
            kind = 6
        tokens.append(token.replace("\u2581", " ") if kind == 4 else token)
        types.append(kind)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    entries = _special_tokens(tokenizer)
    chat = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if sentence_piece:
        first = backend.encode("a", add_special_tokens=False).tokens[:1]
        entries["add_space_prefix"] = bool(first) and first[0].startswith("\u2581")
        scores = _scores(tokens, merges, types)
        return GgufTokenizer("llama", "default", tokens, types, None, scores, entries, chat)
    pre = split_name(backend, ignores_merges=bool(model.get("ignore_merges")))
    return GgufTokenizer("gpt2", pre, tokens, types, merges, None, entries, chat)


def split_name(backend: Tokenizer, *, ignores_merges: bool) -> str:
    """The name of the pre-tokenizer with which llama.cpp splits text like this tokenizer.

    Raises:
        UnsupportedModelError: no known name splits text like the tokenizer.
    """

    def spans(pre_tokenizer: Any) -> list[list[tuple[int, int]]]:
        return [[span for _, span in pre_tokenizer.pre_tokenize_str(text)] for text in TEXTS]

    if backend.pre_tokenizer is not None:
        wanted = spans(backend.pre_tokenizer)
        for name, splits in SPLITS.items():
            if splits.ignores_merges == ignores_merges and spans(splitter(name)) == wanted:
                return name
    raise UnsupportedModelError(
        f"tokenizer splits text unlike every llama.cpp pre-tokenizer that skipwise knows ({', '.join(SPLITS)}); export "
        "--to hf and convert that with llama.cpp's convert_hf_to_gguf.py, which knows more of them",
        page="engine-cannot-compute",
    )


def splitter(name: str) -> Any:
    """A pre-tokenizer of the tokenizers library that splits text like llama.cpp's pre-tokenizer of this name."""
    steps = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in SPLITS[name].expressions]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def set_splits(tokenizer: Any, file: Path) -> None:
    """Gives a tokenizer that transformers read from a GGUF file the pre-tokenizer that the file names.

    transformers may not know the name.

    Raises:
        UnsupportedModelError: nor is it known here.
    """
    import gguf

    field = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre")
    name = "default" if field is None else field.contents()
    if name != "default" and name not in SPLITS:
        raise UnsupportedModelError(
            f"GGUF file {file.name!r} splits text as {name!r}, and skipwise knows {', '.join(SPLITS)}; take the folder "
            "that the file was made of",
            page="unsuitable-tokenizer",
        )
    if name != "default":
        tokenizer.backend_tokenizer.pre_tokenizer = splitter(name)


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    entries = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (index := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            entries[f"{key}_token_id"] = int(index)
    # Taken from what the tokenizer does, because its settings may say something else.
    plain, marked = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    entries["add_bos_token"] = marked[:1] == [tokenizer.bos_token_id] != plain[:1]
    entries["add_eos_token"] = marked[-1:] == [tokenizer.eos_token_id] != plain[-1:]
    return entries


def _scores(tokens: list[str], merges: list[str], types: list[int]) -> list[float]:
    """Scores of SentencePiece tokens, such that merging the best pair first follows the order of the merges.

    A token's score is minus the index of the first merge that produces it. The score of a token that no merge produces
    has no effect.
    """
    first: dict[str, int] = {}
    for place, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", ""), place)
    worst = len(merges) + 1
    return [
        -1000.0 if kind == 4 else float(-first.get(token, worst)) for token, kind in zip(tokens, types, strict=True)
    ]
