"""Sentence ends in texts whose characters are several tokens each."""

from itertools import pairwise

import numpy as np
import pytest
from tokenizer_kinds import KINDS, tokenizer_of_kind
from tokenizers.pre_tokenizers import ByteLevel

from skipwise.data.tokens import Encoder, ends_of_sentences
from skipwise.data.tokens.sentence_ends import sentence_end_code

TEXT = "今日は雨です。明日は？はい！晴れ。。上から、下へ。えりか「そう。」 Is it so? Yes.\n汉字。次！\n終わりの途中"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("unigram", "wordpiece")])
def test_a_sentence_ends_where_the_text_read_so_far_does(kind: str) -> None:
    tokenizer = tokenizer_of_kind(kind)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    read = [str(tokenizer.decode(ids[:number])) for number in range(1, len(ids) + 1)]
    expected = [text.endswith((".", "!", "?", "\n", "。", "！", "？")) for text in read]
    assert ends_of_sentences(Encoder(tokenizer).sentence_ends()[ids]).tolist() == expected
    assert sum(expected) >= 12


@pytest.mark.parametrize("mark", ["。", "！", "？"])
@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2)])
def test_a_mark_may_be_cut_anywhere(mark: str, cuts: tuple[int, ...]) -> None:
    # The first token also has the end of the character before.
    read = f"す{mark}".encode()
    pieces = [read[begin:end] for begin, end in pairwise((1, *(3 + cut for cut in cuts), 6))]
    codes = [sentence_end_code(spelled(piece), piece.decode(errors="replace")) for piece in pieces]
    assert ends_of_sentences(np.array(codes)).tolist() == [False] * len(cuts) + [True]
    assert not ends_of_sentences(np.array(codes[::-1])).any()


def spelled(data: bytes) -> str:
    """A byte-level token of these bytes, in the library's own spelling."""
    split, letters = ByteLevel(add_prefix_space=False, use_regex=False), {}
    for character in "す。！？":
        ((spelling, _),) = split.pre_tokenize_str(character)
        letters |= dict(zip(character.encode(), spelling, strict=True))
    return "".join(letters[byte] for byte in data)


def test_short_texts_have_no_ends() -> None:
    assert ends_of_sentences(np.zeros(0, np.uint8)).tolist() == []
    assert ends_of_sentences(np.array([3], np.uint8)).tolist() == [False]
