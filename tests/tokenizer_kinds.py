"""Small tokenizers of the kinds that published models have, trained on a little text in a second."""

import inspect
import json
import textwrap
from collections.abc import Callable
from functools import cache
from pydoc_data.topics import topics
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TURN, END_OF_TURN, END, THINK = "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>"
SPECIAL = [END, TURN, END_OF_TURN]

_OTHER_LETTERS = (
    "Größe naïve café 日本語のテキスト。これは例です。 中文的一段话\uff0c没有空格。 Привет мир 🙂🙂 a\u0301 12345 "
    "3.14159\n\n\t\tx  y   z"
)


def _text() -> list[str]:
    """Prose and code of the standard library, whose text no change here touches."""
    prose = topics["formatstrings"][:20_000]
    return [*inspect.getsource(textwrap).splitlines(), *prose.splitlines(keepends=True), *[_OTHER_LETTERS] * 8]


def _byte_level(*steps: pre_tokenizers.PreTokenizer, use_regex: bool = False, **model: Any) -> Tokenizer:
    engine = Tokenizer(models.BPE(**model))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)]
    )
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(_text(), trainer)
    return engine


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)


def _qwen() -> Tokenizer:
    engine = _byte_level(_split(QWEN))
    engine.normalizer = normalizers.NFC()
    return engine


def _neox() -> Tokenizer:
    engine = _byte_level(use_regex=True)
    engine.normalizer = normalizers.NFC()
    engine.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    return engine


def _pieces(normalizer: normalizers.Normalizer, pre: pre_tokenizers.PreTokenizer | None) -> Tokenizer:
    engine = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    engine.normalizer = normalizer
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_, *SPECIAL],
        show_progress=False,
        max_token_length=8,
    )
    engine.train_from_iterator(_text(), trainer)
    # As in published files, bytes are pieces of the model and no added tokens.
    described = json.loads(engine.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] not in bytes_]
    engine = Tokenizer.from_str(json.dumps(described))
    if pre is not None:
        engine.pre_tokenizer = pre
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    engine.decoder = decoders.Sequence(steps)
    return engine


def _llama_2() -> Tokenizer:
    return _pieces(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None)


def _gemma() -> Tokenizer:
    engine = _pieces(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"))
    engine.add_tokens(["\n", "\n\n", "▁▁", "▁▁▁", "<h1>"])
    return engine


def _unigram() -> Tokenizer:
    engine = Tokenizer(models.Unigram())
    engine.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=700, special_tokens=["<unk>", "</s>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    engine.train_from_iterator(_text(), trainer)
    engine.decoder = decoders.Metaspace()
    return engine


def _word_piece() -> Tokenizer:
    engine = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", *SPECIAL], show_progress=False
    )
    engine.train_from_iterator(_text(), trainer)
    engine.decoder = decoders.WordPiece()
    return engine


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: _byte_level(use_regex=True),
    "smollm": lambda: _byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama3": lambda: _byte_level(_split(LLAMA_3), ignore_merges=True),
    "qwen": _qwen,
    "o200k": lambda: _byte_level(_split(O200K)),
    "deepseek": lambda: _byte_level(_split(r"\p{N}{1,3}"), _split("[\u4e00-\u9fa5\u3040-\u30ff]+"), _split(LLAMA_3)),
    "neox": _neox,
    "llama2": _llama_2,
    "gemma": _gemma,
    "unigram": _unigram,
    "wordpiece": _word_piece,
}


@cache
def engine_of_kind(kind: str) -> Tokenizer:
    """The engine; whoever changes it copies it first."""
    return KINDS[kind]()


def tokenizer_of_kind(kind: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of its own, with `<think>` as a token that is added and not special."""
    engine = Tokenizer.from_str(engine_of_kind(kind).to_str())
    engine.add_tokens([THINK, "</think>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, eos_token=END_OF_TURN, bos_token=END)
    tokenizer.chat_template = chat_template
    return tokenizer
